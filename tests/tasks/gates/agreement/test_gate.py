"""What the agreement gate makes of two releases that a function answers for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from infra.errors import TritonError
from infra.triton.client import Completion
from tasks.gates.agreement.gate import AgreementGate
from tasks.gates.agreement.passages import bundled
from tasks.gates.agreement.reference import places
from tasks.gates.judge import judge
from tasks.gates.protocol import FoundReference, Served
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.store.reference import ReferenceToken, ReferenceTokens
from tasks.targets.gate_record import Evidence, GateRecord
from tests.tasks.gates.trials import CANDIDATE, LIVE, Answering, finds, trial

ASKED = AgreementSpec(gate="agreement", positions=2)


def run(answering: Answering, asked: AgreementSpec = ASKED, **of_trial: Any) -> Evidence:
    return AgreementGate(asked).run(trial(answering, **of_trial))


def figures(evidence: Evidence) -> dict[str, float]:
    return {figure.name: figure.candidate for figure in evidence.figures}


def echo(model: str, request: Mapping[str, Any]) -> str:
    return request["text_input"][-3:]


def test_equal_releases_agree_and_are_asked_once_a_place() -> None:
    at = trial(echo)
    evidence = AgreementGate(ASKED).run(at)
    (comparison,) = evidence.comparisons
    assert (comparison.difference, comparison.samples) == (0, 128)
    assert comparison.lower is not None and comparison.lower > -ASKED.margin and comparison.p_fine < 0.01
    assert figures(evidence)["places asked"] == 128 and not evidence.differing and not evidence.gaps
    of_places = [request for _, request in at.answered.requests if request["max_tokens"] == 1]
    assert len(of_places) == 256
    assert {request["temperature"] for request in of_places} == {0.0}
    assert all(request["return_num_output_tokens"] for request in of_places)
    # Half of the time the candidate is asked first.
    first = Counter(model for model, _ in at.answered.requests[:256:2])
    assert first[CANDIDATE] == first[LIVE]


def test_a_candidate_that_goes_on_otherwise_is_told_apart() -> None:
    def answer(model: str, request: Mapping[str, Any]) -> str:
        differs = model == CANDIDATE and hash_of(request["text_input"]) < 0.2
        return "other" if differs else echo(model, request)

    evidence = run(answer)
    (comparison,) = evidence.comparisons
    assert comparison.p_worse < 0.01 and comparison.upper is not None and comparison.upper < -ASKED.margin
    assert evidence.differing[0].candidate == "other"
    assert figures(evidence)["places where a release differs from itself"] == 0
    # That was sure before all was read.
    assert "would be refused too" in evidence.notes[0] and figures(evidence)["places asked"] < 128


def hash_of(text: str) -> float:
    return random.Random(text).random()


def test_releases_that_differ_from_themselves_as_often_as_from_each_other_agree() -> None:
    noise = random.Random(1)

    def answer(model: str, request: Mapping[str, Any]) -> str:
        # One place in twenty is a tie of two tokens.
        tie = request["max_tokens"] == 1 and hash_of(request["text_input"]) < 0.05
        return noise.choice(["one", "other"]) if tie else echo(model, request)

    evidence = run(answer, AgreementSpec(gate="agreement"))
    assert figures(evidence)["places where the next token differs"] <= 5
    assert figures(evidence)["places where a release differs from itself"] > 3
    assert evidence.comparisons[0].p_fine < 0.05


def test_the_end_of_an_answer_is_told_from_a_part_of_a_character_where_tokens_are_counted() -> None:
    def answer(model: str, request: Mapping[str, Any]) -> Completion:
        return Completion("", (), 0.01, tokens=int(model == LIVE) if "return_num_output_tokens" in request else None)

    assert run(answer).comparisons[0].difference == -1
    assert run(answer, contract=1).comparisons[0].difference == 0


def test_a_first_release_has_nothing_to_be_compared_with() -> None:
    assert run(echo, live=False) == Evidence()


def test_a_candidate_that_does_not_answer_fails_and_a_live_release_that_does_not_leaves_a_gap() -> None:
    def silent(name: str) -> Answering:
        def answer(model: str, request: Mapping[str, Any]) -> str:
            if model == name and "harbour" in request["text_input"]:
                raise TritonError("it is broken", code="triton-refused")
            return echo(model, request)

        return answer

    failed = run(silent(CANDIDATE))
    assert "it is broken" in failed.failures[0] and not failed.gaps
    left = run(silent(LIVE))
    assert "it is broken" in left.gaps[0] and not left.failures


def test_what_may_succeed_later_is_raised() -> None:
    def answer(model: str, request: Mapping[str, Any]) -> str:
        raise TritonError("gone", code="triton-unreachable", retryable=True)

    with pytest.raises(TritonError) as caught:
        run(answer)
    assert caught.value.retryable


def test_several_nodes_share_the_passages() -> None:
    evidence = run(echo, nodes=3)
    assert evidence.comparisons[0].samples == 128


def test_without_time_it_is_a_gap() -> None:
    evidence = run(echo, AgreementSpec(gate="agreement", max_seconds=1e-9))
    assert not evidence.comparisons and evidence.gaps
    assert "0 of 64 passages" in evidence.notes[0]


def test_where_answers_that_run_on_first_differ_is_a_figure() -> None:
    def answer(model: str, request: Mapping[str, Any]) -> str:
        return echo(model, request) if request["max_tokens"] == 1 else f"the same {model}"

    evidence = run(answer)
    assert figures(evidence)["first difference of an answer, in the middle of all"] == len("the same smollm2-135m--r")
    assert [each.candidate for each in evidence.differing] == [f"the same {CANDIDATE}"] * 3


def reference(differs: float = 0, kind: str = "llamacpp") -> FoundReference:
    """What an echo says in all places but such a share, where it says something else."""
    tokens = tuple(
        ReferenceToken(
            passage=passage.name,
            cut=len(prefix),
            text="other" if hash_of(prefix) < differs else prefix[-3:],
            tokens=1,
        )
        for passage, prefix in places(bundled(), ASKED.positions)
    )
    return FoundReference(ReferenceTokens(kind=kind, tokens=tokens), f"reference/{'ab' * 32}")


def beside_reference(
    found: FoundReference, asked: AgreementSpec, *, live: bool = False, recipe: Any = None
) -> Evidence:
    at = replace(trial(echo_of_one, live=live), find_reference=finds(found))
    if recipe is not None:
        intent = at.candidate.intent.model_copy(update={"recipe": recipe})
        at = replace(at, candidate=Served(intent))
    return AgreementGate(asked).run(at)


def echo_of_one(model: str, request: Mapping[str, Any]) -> Completion:
    return Completion(request["text_input"][-3:], (), 0.01, tokens=1)


AUTO = ASKED.model_copy(update={"reference": "auto", "reference_margin": 0.1})


def test_a_first_release_is_compared_with_the_reference_where_its_file_asks() -> None:
    equal, worse = beside_reference(reference(), AUTO), beside_reference(reference(0.3), AUTO)
    assert beside_reference(reference(0.3), ASKED) == Evidence()
    (fine,), (lost,) = equal.comparisons, worse.comparisons
    assert (fine.against, fine.difference, fine.samples, fine.margin) == ("reference", 0, 128, 0.1)
    assert fine.p_fine < 0.01 and fine.detectable is not None and equal.reference.startswith("reference/")
    assert lost.p_worse < 0.01 and {pair.against for pair in worse.differing} == {"reference"}
    record = GateRecord(gate="agreement", kind="agreement", candidate=2, live=None, evidence=worse)
    (verdict,) = judge([record], 0.05)
    assert verdict.state == "refused" and "of the reference" in verdict.reason


def test_the_reference_stands_beside_the_live_release_where_the_precision_has_changed() -> None:
    same = beside_reference(reference(0.3), AUTO, live=True)
    assert [each.against for each in same.comparisons] == ["live"] and not same.reference
    fewer_bits = beside_reference(reference(0.3), AUTO, live=True, recipe={"quantization": "q4_0"})
    live, beside = fewer_bits.comparisons
    assert (live.against, live.difference, beside.against) == ("live", 0, "reference") and beside.difference < -0.1
    # Both can refuse, so each has half of the level, and one is enough.
    record = GateRecord(gate="agreement", kind="agreement", candidate=2, live=1, evidence=fewer_bits)
    (verdict,) = judge([record], 0.05)
    assert verdict.state == "refused" and verdict.decisive == beside.model_copy(
        update={"detectable": verdict.decisive.detectable if verdict.decisive else None}
    )
    assert verdict.level is not None and verdict.level == 0.025
    always = AUTO.model_copy(update={"reference": "always"})
    assert len(beside_reference(reference(), always, live=True).comparisons) == 2


def test_a_reference_that_is_missing_is_told_and_is_a_gap_for_who_always_wants_one() -> None:
    none = FoundReference(missing="kind parrot has none on this machine")
    auto = beside_reference(none, AUTO)
    assert auto.notes == ("there is no reference: kind parrot has none on this machine",) and not auto.gaps
    always = beside_reference(none, AUTO.model_copy(update={"reference": "always"}))
    assert always.gaps == auto.notes and not always.notes


def test_a_reference_of_other_places_leaves_a_gap() -> None:
    found = reference()
    assert found.tokens is not None
    fewer = replace(found, tokens=found.tokens.model_copy(update={"tokens": found.tokens.tokens[2:]}))
    evidence = beside_reference(fewer, AUTO)
    assert "the reference gave no answer" in evidence.gaps[0] and not evidence.failures


def test_a_gate_without_a_reference_is_recorded_as_it_was_before_there_were_any() -> None:
    assert {"reference", "reference_margin"}.isdisjoint(ASKED.model_dump(mode="json"))
    assert AUTO.model_dump(mode="json")["reference"] == "auto"
