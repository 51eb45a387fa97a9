"""The gate against models of known delays, one behind each release's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.gates.judge import judge
from tasks.gates.performance.evidence import evidence_of
from tasks.gates.performance.gate import PerformanceGate
from tasks.gates.performance.rounds import rounds_of
from tasks.gates.performance.turns import Asked, Turns
from tasks.gates.protocol import Served, Trial
from tasks.load.outcome import Outcome
from tasks.models.catalogue import load_model
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.targets.gate_record import Evidence, GateRecord, Verdict
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent
from tests.tasks.load.timed_model import Delays, Running, timed_model

MODEL = load_model(Path(__file__).parents[4] / "deployments" / "models" / "smollm2-135m.yaml")
SMALL: dict[str, Any] = {
    "most_lateness_ms": 10_000,
    "requests": 40,
    "rounds": 8,
    "concurrency": 5,
    "prompt_tokens": "9",
    "answer_tokens": "uniform:3,6",
}


def asked(**fields: Any) -> PerformanceSpec:
    return PerformanceSpec(gate="performance", **{**SMALL, **fields})


def served(release: int) -> Served:
    return Served(
        Intent(
            model=MODEL.name, release=release, repository="repository/00", digest="d", recipe={}, serving={},
            source="file:///weights", flow_run="some-run",
        )
    )  # fmt: skip


def trial(model: Running, *, live: bool = True, nodes: int = 1) -> Trial:
    """Release 2 beside release 1."""
    reports = [NodeReport.model_construct(node=f"n{at}", http=model.http, grpc=model.grpc) for at in range(nodes)]
    return Trial(MODEL, "local", tuple(reports), served(2), served(1) if live else None)


CANDIDATE, LIVE = served(2).name, served(1).name
DELAYS = Delays(first_s=0.02, token_s=0.004, spread=0.05)


def verdict(evidence: Evidence, live: int | None = 1) -> Verdict:
    record = GateRecord(gate="performance", kind="performance", candidate=2, live=live, evidence=evidence)
    return judge([record], 0.05)[0]


@pytest.fixture(scope="module")
def five_times_slower() -> Iterator[Running]:
    with timed_model(replace(DELAYS, slower={CANDIDATE: 5.0})) as model:
        yield model


@pytest.mark.parametrize("over", ["grpc", pytest.param("sse", marks=pytest.mark.slow)])
def test_a_slow_candidate_is_refused(over: str, five_times_slower: Running) -> None:
    evidence = PerformanceGate(asked(over=over, margin=0.5)).run(trial(five_times_slower, nodes=2))
    found = {each.measure: each for each in evidence.comparisons}
    assert found["time_to_first_token"].candidate > 1.8 and found["inter_token_latency"].candidate > 1.8
    assert found["requests answered"].candidate == found["requests answered"].other == 1
    assert found["time_to_first_token"].samples == 40
    assert verdict(evidence).state == "refused"
    assert "latency" in verdict(evidence).reason or "first_token" in verdict(evidence).reason
    names = {each.name for each in evidence.figures}
    assert {"time_to_first_token p50", "request_throughput", "output_token_throughput"} <= names


@pytest.mark.slow
def test_a_candidate_that_is_faster_passes(five_times_slower: Running) -> None:
    """The same pair the other way round: nothing that the machine does makes up for a factor of five."""
    given = trial(five_times_slower)
    evidence = PerformanceGate(asked(margin=0.5, errors=0.2)).run(replace(given, candidate=served(1), live=served(2)))
    assert verdict(evidence).state == "passed"


@pytest.mark.slow
def test_a_candidate_whose_requests_fail_is_refused_and_told_why() -> None:
    with timed_model(replace(DELAYS, failing=CANDIDATE)) as model:
        evidence = PerformanceGate(asked()).run(trial(model))
    assert verdict(evidence).state == "refused"
    assert "failed" in verdict(evidence).reason or "requests answered" in verdict(evidence).reason
    assert any("it has failed [internal]" in note for note in evidence.notes)


@pytest.mark.slow
def test_a_first_release_is_held_to_limits(five_times_slower: Running) -> None:
    kept, missed = (
        PerformanceGate(asked(requests=60, errors=0.2, time_to_first_token_ms=limit, percentile=95)).run(
            trial(five_times_slower, live=False)
        )
        for limit in (5000.0, 10.0)
    )
    assert verdict(kept, live=None).state == "passed"
    assert verdict(missed, live=None).state == "refused"
    assert {each.against for each in kept.comparisons} <= {"floor"}
    assert "goodput" in {each.name for each in kept.figures}


def test_nobody_there_is_the_candidates_fault_only_if_it_is_the_candidate() -> None:
    nowhere = NodeReport.model_construct(node="n", http="127.0.0.1:9", grpc="127.0.0.1:9")
    with timed_model(DELAYS) as model:
        given = trial(model)
    evidence = PerformanceGate(asked(over="sse")).run(replace(given, nodes=(nowhere,)))
    assert verdict(evidence).state == "refused" and "unreachable" in evidence.failures[0]


@pytest.mark.slow
def test_a_gate_ends_when_its_time_is_over() -> None:
    with timed_model(replace(DELAYS, slower={CANDIDATE: 100.0})) as model:
        evidence = PerformanceGate(asked(most_seconds=1)).run(trial(model))
    assert "within 1 s" in evidence.gaps[0] and verdict(evidence).state == "undecided"


def outcome(number: int, first_ms: float, failure: str | None = None) -> Outcome:
    assert failure in (None, "failed")
    return Outcome(number, 0, 0, 0, first_ms / 1000, first_ms / 1000 + 0.03, output_tokens=4, failure=failure)


def turns(candidate_ms: float, *, late_s: float = 0.001, rounds: int = 8, failing: int = 0) -> Turns:
    """Prompts whose answers take as long as they should, but for a little that differs from round to round."""
    made = Turns(seconds={"candidate": 4.0, "live": 4.0})
    for each in rounds_of(asked(), 1)[:rounds]:
        for item in each.items:
            ours = outcome(item.number, candidate_ms + each.number / 10, "failed" if item.number < failing else None)
            made.asked.append(Asked(item, each.number, {"candidate": ours, "live": outcome(item.number, 20.0)}))
            made.lateness.add(late_s)
    return made


def test_evidence_of_a_load_that_was_late_decides_nothing() -> None:
    late, on_time = (
        evidence_of(asked(most_lateness_ms=10), turns(80, late_s=late), 0.05, live=True) for late in (0.05, 0.001)
    )
    assert not late.comparisons and verdict(late).state == "undecided"
    assert verdict(on_time).state == "refused"


def test_evidence_of_what_was_cut_short_does_not_pass() -> None:
    made = turns(20)
    made.cut = "3 of 8 rounds were done within 1 s"
    evidence = evidence_of(asked(errors=0.2), made, 0.05, live=True)
    assert verdict(evidence).state == "undecided" and made.cut in verdict(evidence).reason
    assert verdict(evidence_of(asked(errors=0.2), turns(20), 0.05, live=True)).state == "passed"
    few = evidence_of(asked(errors=0.2), turns(20, rounds=4), 0.05, live=True)
    assert verdict(few).state == "undecided"


def test_the_distributions_have_each_answer_once() -> None:
    made = turns(80, failing=3)
    for live in (True, False):
        found = {each.measure: each for each in evidence_of(asked(), made, 0.05, live=live).histograms}
        assert list(found) == ["time_to_first_token", "inter_token_latency", "request_latency"]
        first = found["time_to_first_token"]
        assert sum(first.candidate) == 37 and sum(first.live) == (40 if live else 0)
        assert first.edges[0] == (20.0 if live else 80.0) and first.edges[-1] >= 80.7
        assert [*first.edges] == sorted({*first.edges}) and len(first.edges) == len(first.candidate) + 1
        assert not live or first.live[0] == 40  # all of them took 20 ms
    assert not evidence_of(asked(), turns(80, failing=40), 0.05, live=False).histograms


def test_evidence_of_most_requests_failing_is_a_failure() -> None:
    evidence = evidence_of(asked(), turns(20, failing=30), 0.05, live=True)
    assert "30 of 40 requests failed" in evidence.failures[0]
    some = evidence_of(asked(), turns(20, failing=12), 0.05, live=True)
    assert not some.failures and verdict(some).state == "refused"


def test_the_default_decides_an_equal_pair() -> None:
    """The margins of a file that says nothing are ones that its own numbers of requests can decide."""
    spec = PerformanceSpec(gate="performance")
    made = Turns(seconds={"candidate": 4.0, "live": 4.0})
    for each in rounds_of(spec, 1):
        for item in each.items:
            both = outcome(item.number, 20 + each.number / 100), outcome(item.number, 20.0)
            made.asked.append(Asked(item, each.number, {"candidate": both[0], "live": both[1]}))
            made.lateness.add(0.001)
    assert verdict(evidence_of(spec, made, 0.05, live=True)).state == "passed"
    assert any("short prompts, long answers" in each.name for each in evidence_of(spec, made, 0.05, live=True).figures)
