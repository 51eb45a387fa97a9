"""Figures of requests: what is counted when, and what of it Triton is told."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tasks.serving.contract import GenerationRequest
from tasks.serving.engine import Piece
from tasks.serving.figures import (
    CACHE,
    ENDINGS,
    FIRST,
    GAP,
    GENERATION,
    METRICS,
    PROMPT,
    QUEUE,
    WHOLE,
    Figures,
    Metric,
)
from tasks.serving.metrics import Metrics, labels_of, take_place
from tasks.serving.runner import Runner
from tests.tasks.serving.test_runner import Recorder, ScriptEngine
from tests.waiting import wait

ARGS = {
    "model_name": "chat--r7--llm",
    "model_instance_name": "chat--r7--llm_0_1",
    "model_repository": "/nowhere/chat--r7--llm",
}


def observed(figures: Figures) -> dict[Metric, list[float]]:
    found: dict[Metric, list[float]] = {}
    for metric, value in figures.observed:
        found.setdefault(metric, []).append(value)
    return found


def test_times_are_those_of_tokens_and_their_mean_leaves_out_the_first() -> None:
    figures = Figures()
    row = figures.row(arrived=100.0)
    row.came(Piece("a", (), 1, 9, at=100.5), streams=True)
    row.came(Piece("b c", (), 2, 9, at=100.9), streams=True)
    row.came(Piece("d", (), 1, 9, at=101.1), streams=True)
    row.came(Piece("", (), 0, 9, "length", at=105.0), streams=True)
    found = observed(figures)
    assert found[FIRST] == [0.5] and found[GAP] == [pytest.approx((101.1 - 100.5) / 3)]
    assert found[PROMPT] == [9] and found[GENERATION] == [4] and len(found[WHOLE]) == 1
    assert (figures.prompt_tokens, figures.generated_tokens, list(figures.ended)) == (9, 4, ["length"])
    assert not figures.running


@pytest.mark.parametrize(("streams", "tokens", "known"), [(False, 5, False), (True, 5, True), (False, 1, True)])
def test_an_answer_that_comes_whole_tells_no_first_token(streams: bool, tokens: int, known: bool) -> None:
    figures = Figures()
    figures.row(0.0).came(Piece("all", (), tokens, 3, "stop", at=1.0), streams=streams)
    found = observed(figures)
    assert (FIRST in found) == known and GAP not in found and found[GENERATION] == [tokens]


def test_requests_beyond_the_slots_wait_in_their_order() -> None:
    figures = Figures(slots=2)
    rows = [figures.row(time.monotonic()) for _ in range(5)]
    assert list(figures.running) == rows[:2] and list(figures.waiting) == rows[2:]
    rows[3].end("cancelled")
    rows[0].end("internal")
    assert list(figures.running) == [rows[1], rows[2]] and list(figures.waiting) == [rows[4]]
    rows[4].came(Piece("early", (), 1, 1), streams=True)
    assert rows[4] in figures.running and not figures.waiting, "the engine began it"
    for row in rows:
        row.end("deadline")
    assert len(observed(figures)[QUEUE]) == 4, "one was never begun"
    assert Counter(figures.ended) == {"cancelled": 1, "internal": 1, "deadline": 3}
    assert not figures.running and not figures.waiting and WHOLE not in observed(figures)


def test_each_end_of_a_request_counts_once() -> None:
    figures, engine = Figures(slots=8), ScriptEngine()
    runner = Runner(engine, 0.5)
    expected = Counter[str]()
    clients: list[Recorder] = []
    for ending, texts in (
        ("stop", ["a b", "a"]),
        ("invalid", ["refused"]),
        ("internal", ["broken"]),
        ("internal", ["faulty"]),
        ("deadline", ["a ..."]),
        ("cancelled", ["..."]),
    ):
        clients.append(Recorder())
        runner.submit([GenerationRequest(text) for text in texts], clients[-1], figures, key=ending)
        expected[ending] += len(texts)
    runner.call(runner.cancel, "cancelled")
    runner.submit([GenerationRequest("a")], Recorder())
    for client in clients:
        assert client.ended.wait(5)
    runner.close()
    runner.submit([GenerationRequest("late")], clients[-1], figures)
    expected["unavailable"] += 1
    assert Counter(figures.ended) == expected and set(expected) < set(ENDINGS)
    assert figures.generated_tokens == 4, "those of answers, and of one that did not end"
    assert not figures.running and not figures.waiting


@dataclass
class Triton:
    """Triton's metrics as strict as its own: kinds, labels and buckets are checked, and what is deleted is gone."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = field(default_factory=dict[Any, Any])
    calls: int = 0
    histograms: bool = True

    def MetricFamily(self, *, name: str, description: str, kind: str) -> Any:
        triton = self
        assert description.endswith(".")

        class One:
            def __init__(self, labels: Mapping[str, str], buckets: list[float] | None = None) -> None:
                assert (kind == "histogram") == (buckets is not None) and buckets == (
                    sorted(set(buckets or ())) or None
                )
                self.values = triton.values.setdefault((name, tuple(sorted(labels.items()))), [])

            def increment(self, value: float) -> None:
                assert kind == "counter" and value > 0
                self._add(value)

            def observe(self, value: float) -> None:
                assert kind == "histogram"
                self._add(value)

            def set(self, value: float) -> None:
                assert kind == "gauge"
                self.values.clear()
                self._add(value)

            def _add(self, value: float) -> None:
                triton.calls += 1
                self.values.append(value)

        class Family:
            Metric = One

        return Family()

    def module(self) -> Any:
        made = self.MetricFamily

        class Families:
            COUNTER, GAUGE = "counter", "gauge"

            def __new__(cls, **fields: Any) -> Any:
                return made(**fields)

        if self.histograms:
            Families.HISTOGRAM = "histogram"  # pyright: ignore[reportAttributeAccessIssue]
        return type("utils", (), {"MetricFamily": Families})

    def of(self, name: str) -> dict[str, list[float]]:
        """By the reason of the end, or by nothing."""
        return {
            dict(labels).get("finished_reason", ""): found
            for (own, labels), found in self.values.items()
            if own == name
        }


def test_triton_is_told_what_changed_and_nothing_else() -> None:
    triton, figures = Triton(), Figures(slots=1)
    metrics = Metrics(triton.module(), ARGS, figures, lambda: 0.25)
    rows = [figures.row(time.monotonic()) for _ in range(3)]
    wait(lambda: triton.of("num_requests_waiting")[""] == [2], "figure")
    rows[0].came(Piece("a", (), 1, 5), streams=True)
    rows[0].came(Piece("b", (), 1, 5, "stop"), streams=True)
    rows[1].end("cancelled")
    rows[2].end("cancelled")
    figures.refused("invalid")
    metrics.close()
    finished = triton.of("request_finish_total")
    assert set(finished) == set(ENDINGS)
    assert {reason: sum(values) for reason, values in finished.items() if values} == {
        "stop": 1,
        "cancelled": 2,
        "invalid": 1,
    }
    totals = {
        metric.name: sum(triton.of(metric.name)[""]) for metric in METRICS if metric.is_counter and not metric.by_ending
    }
    assert totals == {
        "prompt_tokens_total": 5,
        "generation_tokens_total": 2,
        "request_success_total": 1,
        "request_failure_total": 3,
    }
    assert triton.of("gpu_cache_usage_perc")[""] == [0.25] and triton.of("num_request_max")[""] == [1]
    assert triton.of("num_requests_running")[""] == triton.of("num_requests_waiting")[""] == [0]
    assert len(triton.of("time_to_first_token_seconds")[""]) == 1
    labels = {labels for _, labels in triton.values if "finished_reason" not in dict(labels)}
    assert labels == {(("adapter", ""), ("model", "chat"), ("release", "7"), ("replica", "0_1"))}


def test_what_an_engine_cannot_tell_is_absent() -> None:
    triton = Triton()
    Metrics(triton.module(), ARGS, Figures(), lambda: None).close()
    assert CACHE.name not in {name for name, _ in triton.values}
    assert {name for name, _ in triton.values} == {metric.name for metric in METRICS} - {CACHE.name}


def test_a_triton_without_histograms_has_the_other_figures(capfd: pytest.CaptureFixture[str]) -> None:
    triton, figures = Triton(histograms=False), Figures()
    metrics = Metrics(triton.module(), ARGS, figures, lambda: None)
    figures.row(0.0).end("stop")
    metrics.close()
    assert {name for name, _ in triton.values} == {metric.name for metric in METRICS if not metric.buckets} - {
        CACHE.name
    }
    assert triton.of("request_success_total")[""] == [1] and "no histograms" in capfd.readouterr().err


def test_a_triton_without_metrics_serves_without_figures(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(**fields: Any) -> Any:
        raise RuntimeError("metrics are not allowed")

    Metrics(type("utils", (), {"MetricFamily": staticmethod(refuse)}), ARGS, Figures(), lambda: None).close()
    assert "takes no figures of requests" in capfd.readouterr().err


def test_labels_are_those_of_the_release() -> None:
    assert labels_of("llm") == {"model": "llm", "release": "", "adapter": ""}
    assert labels_of("chat--r7--llm") == {"model": "chat", "release": "7", "adapter": ""}


def test_two_living_processes_never_share_a_figure_and_a_dead_one_leaves_its_place() -> None:
    places = [take_place(ARGS) for _ in range(3)]
    assert [labels["replica"] for _, labels in places] == ["0_1", "0_1-1", "0_1-2"]
    places[0][0].close()
    again, labels = take_place(ARGS)
    assert labels["replica"] == "0_1"
    other, labels = take_place({**ARGS, "model_repository": "/elsewhere"})
    assert labels["replica"] == "0_1"
    for place in (again, other, places[1][0], places[2][0]):
        place.close()
