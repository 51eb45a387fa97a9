"""What the quality gate makes of two releases that a function answers for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.errors import TritonError, UsageError
from infra.triton.client import Completion
from tasks.gates.quality.gate import QualityGate
from tasks.models.gate_specs.quality import QualitySpec
from tasks.models.gate_specs.set_source import SetSource
from tests.tasks.gates.trials import CANDIDATE, LIVE, Answering, trial


@pytest.fixture
def asked(tmp_path: Path) -> QualitySpec:
    """A hundred sums, and one choice."""
    lines = [{"name": f"sum-{n}", "prompt": f"{n} + 1 =", "numeric": n + 1, "stop": ["\n"]} for n in range(100)]
    choice = {"name": "sky", "prompt": "The sky is", "choices": ["up", "blue"], "choice": 1}
    (tmp_path / "set.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, choice]))
    return QualitySpec(gate="quality", questions=SetSource(uri=f"file://{tmp_path}/set.jsonl"), concurrency=1)


def answers(request: Mapping[str, Any], *, wrong_below: int = 0) -> Completion | str:
    text: str = request["text_input"]
    if text.startswith("The sky"):
        if "num_top_log_probs" in request:
            return Completion("The", (-0.1,), 0.01, likeliest=(("The", -0.1), (" B", -1.0), ("A", -3.0)))
        return "B"
    number = int(text.split()[0])
    return f"{number + (1 if number >= wrong_below else 0)}"


def losing(count: int) -> Answering:
    """The live release is wrong in 10 sums of 100, and the candidate in so many more."""
    return lambda model, request: answers(request, wrong_below=10 + (count if model == CANDIDATE else 0))


def test_equal_releases_pass_and_each_question_is_put_to_both(asked: QualitySpec) -> None:
    at = trial(losing(0))
    evidence = QualityGate(asked).run(at)
    (comparison,) = evidence.comparisons
    assert (comparison.candidate, comparison.other, comparison.samples) == (91 / 101, 91 / 101, 101)
    assert comparison.p_fine <= 0.05 and not evidence.gaps and not evidence.differing
    assert [(figure.candidate, figure.live) for figure in evidence.figures] == [(0.9, 0.9), (1.0, 1.0)]
    sums = [(model, request) for model, request in at.answered.requests if request["text_input"].endswith("=")]
    assert [model for model, _ in sums[:4]] == [CANDIDATE, LIVE, LIVE, CANDIDATE]
    assert all(request["stop_words"] == ["\n"] and request["temperature"] == 0 for _, request in sums)


def test_a_candidate_that_has_lost_answers_is_told_apart_and_they_are_shown(asked: QualitySpec) -> None:
    evidence = QualityGate(asked).run(trial(losing(20)))
    (comparison,) = evidence.comparisons
    assert comparison.difference == pytest.approx(-20 / 101) and comparison.p_worse < 0.001
    assert len(evidence.differing) == 20
    assert (evidence.differing[0].candidate, evidence.differing[0].other) == ("10", "11")


def test_the_letter_counts_where_likelihoods_are_not_told(asked: QualitySpec) -> None:
    def refusing(model: str, request: Mapping[str, Any]) -> Completion | str:
        if model == LIVE and "num_top_log_probs" in request:
            raise TritonError("'num_top_log_probs' cannot be honoured", code="triton-refused")
        return answers(request)

    at = trial(refusing)
    assert QualityGate(asked).run(at).comparisons[0].candidate == 1
    of_choice = [(model, request) for model, request in at.answered.requests if request["text_input"].startswith("The")]
    assert [model for model, request in of_choice if "num_top_log_probs" not in request] == [CANDIDATE, LIVE]
    first_contract = trial(lambda model, request: answers(request), contract=1)
    assert QualityGate(asked).run(first_contract).comparisons[0].candidate == 1
    assert not any("num_top_log_probs" in request for _, request in first_contract.answered.requests)


def test_a_first_release_has_its_floor_alone(asked: QualitySpec) -> None:
    at = trial(losing(0), live=False)
    assert not QualityGate(asked).run(at).comparisons and not at.answered.requests
    floor = asked.model_copy(update={"floor": 0.8})
    (comparison,) = QualityGate(floor).run(trial(losing(0), live=False)).comparisons
    assert comparison.against == "floor" and comparison.p_fine < 0.05
    (comparison,) = QualityGate(floor).run(trial(losing(40), live=False)).comparisons
    assert comparison.p_worse < 0.05


def test_no_answer_is_not_right_and_none_of_the_live_release_is_a_gap(asked: QualitySpec) -> None:
    def silent(name: str) -> Answering:
        def answer(model: str, request: Mapping[str, Any]) -> Completion | str:
            if model == name and request["text_input"].startswith("5"):
                raise TritonError("broken", code="triton-refused")
            return answers(request)

        return answer

    evidence = QualityGate(asked).run(trial(silent(CANDIDATE)))
    assert evidence.comparisons[0].candidate == 90 / 101 and "11 of 101" in evidence.notes[0] and not evidence.gaps
    evidence = QualityGate(asked).run(trial(silent(LIVE)))
    assert "11 of 101" in evidence.gaps[0]


def test_answers_that_run_on_are_told_apart_from_answers_that_end(asked: QualitySpec) -> None:
    def runs_on(model: str, request: Mapping[str, Any]) -> Completion | str:
        answer = answers(request)
        if not isinstance(answer, str):
            return answer
        # One answer in ten of the live release runs on too.
        ends = model == LIVE and not answer.endswith("7")
        return Completion(answer, (), 0.01, tokens=3 if ends else request["max_tokens"])

    at = trial(runs_on)
    right, ends = QualityGate(asked).run(at).comparisons
    assert right.difference == 0
    assert (ends.measure, ends.samples, ends.difference) == ("answers that end", 100, -0.9) and ends.p_worse < 1e-9
    assert all(request["return_num_output_tokens"] for _, request in at.answered.requests if "stop_words" in request)
    # Nobody counts where the model's file does not want it, or the contract has no counts.
    assert len(QualityGate(asked.model_copy(update={"endings": None})).run(trial(runs_on)).comparisons) == 1
    without = trial(lambda model, request: answers(request), contract=1)
    assert len(QualityGate(asked).run(without).comparisons) == 1


def test_what_may_succeed_later_is_raised(asked: QualitySpec) -> None:
    def gone(model: str, request: Mapping[str, Any]) -> str:
        raise TritonError("gone", code="triton-unreachable", retryable=True)

    with pytest.raises(TritonError) as caught:
        QualityGate(asked).run(trial(gone))
    assert caught.value.retryable


def test_without_time_it_is_a_gap(asked: QualitySpec) -> None:
    evidence = QualityGate(asked.model_copy(update={"max_seconds": 1e-9})).run(trial(losing(0)))
    assert not evidence.comparisons and evidence.gaps


def test_a_set_that_cannot_be_read_or_has_changed_is_refused(asked: QualitySpec, tmp_path: Path) -> None:
    def code(**changed: str) -> str:
        assert asked.questions is not None
        questions = asked.questions.model_copy(update=changed)
        with pytest.raises(UsageError) as caught:
            QualityGate(asked.model_copy(update={"questions": questions})).run(trial(losing(0)))
        return caught.value.code

    assert code(uri=f"file://{tmp_path}/other.jsonl") == "set-missing"
    assert code(sha256="0" * 64) == "set-changed"
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert code(uri=f"file://{tmp_path}/bytes") == "set-invalid"
