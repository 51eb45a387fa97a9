"""Verdicts: by the bounds and the margin, by Holm beside other gates, and never by missing data."""

from __future__ import annotations

from typing import Any

from tasks.gates.judge import judge, overall
from tasks.targets.gate_record import Comparison, Evidence, GateRecord, PromptResult


def comparison(p_worse: float = 0.9, p_fine: float = 0.001, **about: Any) -> Comparison:
    fields: dict[str, Any] = {
        "measure": "accuracy",
        "candidate": 0.7,
        "other": 0.72,
        "difference": -0.02,
        "lower": -0.03,
        "upper": -0.01,
        "margin": 0.05,
        "samples": 200,
        "detectable": 0.08,
        "needed": 900,
    }
    return Comparison.model_validate({**fields, "p_worse": p_worse, "p_fine": p_fine, **about})


def record(*comparisons: Comparison, gate: str = "quality", live: int | None = 3, **evidence: Any) -> GateRecord:
    found = Evidence.model_validate({"comparisons": comparisons, **evidence})
    return GateRecord(gate=gate, kind=gate, candidate=4, live=live, evidence=found)


def test_states() -> None:
    cases = {
        "passed": record(comparison()),
        "refused": record(comparison(p_worse=0.04, p_fine=0.99)),
        "undecided": record(comparison(p_worse=0.3, p_fine=0.06)),
    }
    for state, each in cases.items():
        (verdict,) = judge([each], 0.05)
        assert (verdict.state, overall([verdict]), verdict.samples) == (state, state, 200)
        assert verdict.decisive == each.evidence.comparisons[0] and "accuracy 70 %, against 72 %" in verdict.reason


def test_the_reason_says_what_would_decide() -> None:
    (verdict,) = judge([record(comparison(p_worse=0.3, p_fine=0.06))], 0.05)
    assert "between -3 points and -1 points" in verdict.reason and "5 points may be lost" in verdict.reason
    assert "show a loss of 8 points or more" in verdict.reason and "about 900 would decide" in verdict.reason


def test_all_of_a_gate_must_pass_and_one_refuses() -> None:
    mixed = record(comparison(), comparison(p_worse=0.3, p_fine=0.2, measure="speed"))
    (verdict,) = judge([mixed], 0.05)
    assert verdict.state == "undecided" and verdict.decisive is not None and verdict.decisive.measure == "speed"
    worse = record(comparison(), comparison(p_worse=0.001, p_fine=1, measure="speed"))
    (verdict,) = judge([worse], 0.05)
    assert verdict.state == "refused" and verdict.decisive is not None and verdict.decisive.measure == "speed"


def test_beside_other_gates_more_is_needed_to_refuse() -> None:
    suspect = record(comparison(p_worse=0.03, p_fine=0.99), gate="a")
    fine = [record(comparison(), gate=name) for name in "bcd"]
    alone, beside = judge([suspect], 0.05)[0], judge([suspect, *fine], 0.05)[0]
    assert alone.state == "refused" and beside.state == "undecided"
    assert beside.level == 0.05 / 4 and "alone would refuse" in beside.reason
    # It also sees less then: the loss that it states is that of the level which it has.
    assert alone.decisive is not None and beside.decisive is not None
    assert (alone.decisive.detectable or 0) < (beside.decisive.detectable or 0)


def test_what_cannot_be_excused_refuses_whatever_else_was_found() -> None:
    (verdict,) = judge([record(comparison(), failures=("no answer to 'a'",))], 0.05)
    assert (verdict.state, verdict.reason) == ("refused", "no answer to 'a'")


def test_no_data_is_never_a_pass() -> None:
    (verdict,) = judge([record(comparison(), gaps=("too few requests",))], 0.05)
    assert (verdict.state, verdict.reason) == ("undecided", "too few requests")
    (verdict,) = judge([record(comparison(p_worse=0.001, p_fine=1), gaps=("too few requests",))], 0.05)
    assert verdict.state == "refused"


def test_a_first_release_has_nothing_to_be_compared_with() -> None:
    (verdict,) = judge([record(live=None)], 0.05)
    assert verdict.state == "passed" and "no release was live" in verdict.reason


def test_the_test_prompts() -> None:
    answer = PromptResult(prompt="p", node="n", passed=True, answer="a", seconds=0.1, failures=())
    (verdict,) = judge([record(gate="smoke", prompts=(answer, answer))], 0.05)
    assert (verdict.state, verdict.samples, verdict.decisive) == ("passed", 2, None)


def test_overall() -> None:
    passed, refused, undecided = (
        judge([record(each)], 0.05)[0]
        for each in (comparison(), comparison(p_worse=0, p_fine=1), comparison(p_worse=0.5, p_fine=0.5))
    )
    assert overall([passed, passed]) == "passed" and overall([]) == "passed"
    assert overall([passed, undecided]) == "undecided" and overall([undecided, refused, passed]) == "refused"
