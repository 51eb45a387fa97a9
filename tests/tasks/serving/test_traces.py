"""The spans of `llm`, on an engine of a test and before a collector."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tasks.serving.contract import GenerationRequest
from tasks.serving.otlp import ENDPOINT, Sender, Span
from tasks.serving.runner import Runner
from tasks.serving.traces import Traces
from tests.tasks.serving.test_runner import Recorder, ScriptEngine
from tests.trace_collector import Collector, Seen, collector

PARENT = "b" * 16


@pytest.fixture
def spans() -> Iterator[Collector]:
    with collector() as made:
        yield made


def variables(spans: Collector, **more: str) -> dict[str, str]:
    return {ENDPOINT: f"{spans.endpoint}/v1/traces", "OTEL_BSP_SCHEDULE_DELAY": "30", **more}


class Trace:
    """What Triton hands over of a request's trace."""

    def __init__(self, number: int, flags: str = "01") -> None:
        self.id = f"{number:032x}"
        self._flags = flags

    def get_context(self) -> str | None:
        # As Triton 2.51 writes it.
        return json.dumps({"traceparent": f"00-{self.id}-{PARENT}-{self._flags}"})


class NoTrace:
    def get_context(self) -> str | None:
        return None


@pytest.fixture
def traces(spans: Collector) -> Iterator[Traces]:
    made = Traces(variables(spans, OTEL_RESOURCE_ATTRIBUTES="a=b%2Cc,deployment=x"), "tiny--r7--llm", print)
    yield made
    made.close()


@pytest.fixture
def runner(traces: Traces) -> Iterator[Runner]:
    made = Runner(traces.traced_engine(ScriptEngine()), 0.3)
    yield made
    made.close()


def ask(traces: Traces, runner: Runner, trace: object, *texts: str, stream: bool = False) -> Recorder:
    recorder = Recorder()
    requests = [GenerationRequest(text_input=text, stream=stream) for text in texts]
    runner.submit(requests, traces.traced(trace, recorder))
    assert recorder.ended.wait(10)
    return recorder


def test_a_request_has_a_span_below_tritons_with_its_first_token_and_the_others(
    traces: Traces, runner: Runner, spans: Collector
) -> None:
    began = time.time()
    ask(traces, runner, trace := Trace(1), "un deux trois", stream=True)
    ended = time.time()
    spans.wait(lambda: len(spans.of(trace.id)) == 3, "spans")
    found = spans.of(trace.id)
    whole, first, rest = (found[name] for name in ("llm", "first token", "generation"))
    assert (whole.parent, first.parent, rest.parent) == (PARENT, whole.id, whole.id)
    assert began - 0.01 <= whole.began == first.began <= first.ended == rest.began <= rest.ended == whole.ended
    assert whole.ended <= ended + 0.01 and {span.service for span in found.values()} == {"enginehouse-llm"}
    assert whole.attributes == {
        "enginehouse.release": "tiny--r7--llm",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    assert not any(b"deux" in body for body in spans.bodies) and b'"b,c"' in spans.bodies[0]


def test_rows_count_together_and_an_answer_that_does_not_stream_tells_no_first_token(
    traces: Traces, runner: Runner, spans: Collector
) -> None:
    ask(traces, runner, trace := Trace(2), "un deux", "trois")
    spans.wait(lambda: "llm" in spans.of(trace.id), "span")
    assert set(spans.of(trace.id)) == {"llm"}
    said = spans.of(trace.id)["llm"].attributes
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (14, 3)
    assert said["gen_ai.response.finish_reasons"] == ["stop", "stop"]


def test_how_a_request_fails_is_said_and_no_first_token_where_none_came(
    traces: Traces, runner: Runner, spans: Collector
) -> None:
    wanted = {"refused": "invalid", "broken": "internal", "...": "deadline"}
    for number, text in enumerate(wanted, start=10):
        ask(traces, runner, Trace(number), text)

    def found() -> list[dict[str, Seen]]:
        return [spans.of(f"{number:032x}") for number in range(10, 13)]

    spans.wait(lambda: all(found()), "spans")
    assert [set(each) for each in found()] == [{"llm"}] * 3
    assert [each["llm"].attributes["error.type"] for each in found()] == list(wanted.values())
    assert all(each["llm"].failed for each in found())


def test_what_triton_does_not_record_has_no_span(traces: Traces, runner: Runner, spans: Collector) -> None:
    for trace in (NoTrace(), Trace(3, "00"), object()):  # the last is what 24.02 hands over
        ask(traces, runner, trace, "un")
    ask(traces, runner, last := Trace(4), "un")
    spans.wait(lambda: spans.of(last.id), "span")
    assert {span.trace for span in spans.spans} == {last.id}


def test_a_collector_that_is_away_is_said_once_and_what_waits_is_bounded(spans: Collector) -> None:
    said: list[str] = []
    spans.status = 503
    sender = Sender(variables(spans), "llm", said.append)
    span = Span("a" * 32, "b" * 16, "c" * 16, "llm", 1, 2, {})
    began = time.monotonic()
    sender.put(*[span] * 10_000)
    assert time.monotonic() - began < 1
    spans.wait(lambda: spans.asked > 5, "batches")
    assert len(said) == 1 and "HTTP 503" in said[0]
    spans.status = 200
    sender.put(span)
    spans.wait(lambda: spans.spans, "span")
    sender.close()
    assert len(spans.spans) < 4500 and len(said) == 1


def test_the_end_waits_a_short_while_for_the_last_spans(spans: Collector) -> None:
    sender = Sender(variables(spans, OTEL_BSP_SCHEDULE_DELAY="60000"), "llm", print)
    sender.put(Span("a" * 32, "b" * 16, "c" * 16, "llm", 1, 2, {}))
    sender.close()
    assert len(spans.spans) == 1
