"""What the agreement gate makes of two releases that a function answers for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from infra.errors import TritonError
from infra.triton.client import Completion
from tasks.gates.agreement.gate import AgreementGate
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.targets.gate_record import Evidence
from tests.tasks.gates.trials import CANDIDATE, LIVE, Answering, trial

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
