"""Sets of questions, in Enginehouse's form and in that of lm-evaluation-harness."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.errors import UsageError
from tasks.gates.quality.questions import Question, bundled, questions_of
from tasks.gates.quality.samples import is_samples, questions_of_samples
from tasks.gates.sets import SetText


def lines(*values: object) -> SetText:
    return SetText("set", "\n".join(json.dumps(value) for value in values))


def test_the_bundled_questions_ask_in_several_ways() -> None:
    questions = bundled()
    assert len(questions) >= 100
    assert {question.scorer for question in questions} == {"choice", "numeric", "contains", "regex", "json_schema"}
    # A model that always says the same letter is not right more often than chance.
    places = [question.choice for question in questions if question.scorer == "choice"]
    assert max(places.count(place) for place in range(4)) <= len(places) / 4 + 1


def test_a_question_without_a_name_has_that_of_its_line() -> None:
    found = questions_of(lines({"prompt": "one", "exact": "1"}, {"name": "second", "prompt": "two", "exact": "2"}))
    assert [question.name for question in found] == ["line 1", "second"]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "p"},
        {"exact": "a"},
        {"prompt": "", "exact": "a"},
        {"prompt": "p", "exact": "a", "contains": "a"},
        {"prompt": "p", "choices": ["a", "b"], "choice": 2},
        {"prompt": "p", "choices": ["a"], "choice": 0},
        {"prompt": "p", "choices": ["a", "b"], "exact": "a"},
        {"prompt": "p", "choice": 0},
        {"prompt": "p", "regex": "("},
        {"prompt": "p", "regex": "a" * 1001},
        {"prompt": "p", "numeric": "many"},
        {"prompt": "p", "exact": "a", "max_tokens": 0},
        {"prompt": "p", "exact": "a", "spelling": "x"},
        {"prompt": "p", "json_schema": {"type": "objekt"}},
        {"prompt": "p", "json_schema": 1},
        ["p"],
    ],
)
def test_a_line_that_is_no_question_is_named(line: object) -> None:
    with pytest.raises(UsageError) as caught:
        questions_of(lines({"prompt": "p", "exact": "a"}, line))
    assert caught.value.code == "set-invalid" and "line 2" in caught.value.message


@pytest.mark.parametrize(
    "found",
    [SetText("set", ""), lines({"name": "a", "prompt": "p", "exact": "a"}, {"name": "a", "prompt": "q", "exact": "a"})],
)
def test_a_set_has_questions_with_different_names(found: SetText) -> None:
    with pytest.raises(UsageError) as caught:
        questions_of(found)
    assert caught.value.code == "set-invalid"


WRITTEN: dict[str, Any] = {
    "doc_id": 7,
    "doc": {"question": "How many?"},
    "target": "3 + 4 = 7\n#### 1,007",
    "arguments": {"gen_args_0": {"arg_0": "How many?", "arg_1": {"until": ["Q:", ""], "max_gen_toks": 20}}},
    "resps": [["7"]],
    "filtered_resps": ["7"],
    "filter": "strict-match",
    "exact_match": 1.0,
}
CHOSEN: dict[str, Any] = {
    "doc_id": 3,
    "target": "1",
    "arguments": {
        f"gen_args_{place}": {"arg_0": "The sky is", "arg_1": f" {word}"} for place, word in enumerate(("up", "blue"))
    },
}


def test_samples_with_written_answers_are_scored_as_the_models_file_says() -> None:
    found = lines(WRITTEN, {**WRITTEN, "filter": "flexible-extract"})
    assert is_samples(found)
    assert questions_of_samples(found, "numeric") == (
        Question(name="document 7", prompt="How many?", max_tokens=20, stop=("Q:",), numeric=1007),
    )
    assert questions_of_samples(lines({**WRITTEN, "target": ["a", "b"]}), "exact")[0].exact == ("a", "b")
    assert questions_of_samples(lines({**WRITTEN, "target": "['a', 'b']"}), "exact")[0].exact == ("a", "b")
    assert questions_of_samples(lines({**WRITTEN, "target": "[sic]"}), "exact")[0].exact == ("[sic]",)
    assert questions_of_samples(lines({**WRITTEN, "target": ["a.", "b"]}), "contains")[0].regex == r"a\.|b"
    with pytest.raises(UsageError) as caught:
        questions_of_samples(found, None)
    assert caught.value.code == "scorer-missing"


def test_samples_of_older_versions_have_lists() -> None:
    older = {**WRITTEN, "arguments": [["How many?", {"until": "\n"}]]}
    assert questions_of_samples(lines(older), "numeric")[0].stop == ("\n",)


@pytest.mark.parametrize("target", ["1", 1, " blue"])
def test_samples_with_continuations_are_choices(target: object) -> None:
    (question,) = questions_of_samples(lines({**CHOSEN, "target": target}), None)
    assert (question.prompt, question.choices, question.choice) == ("The sky is", ("up", "blue"), 1)


@pytest.mark.parametrize(
    "line",
    [
        {**CHOSEN, "target": "2"},
        {**CHOSEN, "target": "green"},
        {**CHOSEN, "target": None},
        {**CHOSEN, "arguments": []},
        {**CHOSEN, "arguments": {"gen_args_0": {"arg_0": "The sky is"}}},
        {**CHOSEN, "arguments": {"gen_args_0": {"arg_0": "The sky is", "arg_1": " up"}}},
        {**WRITTEN, "target": "many"},
        {**CHOSEN, "arguments": [["He said", " up"], ["She said", " blue"]]},
    ],
)
def test_a_sample_that_cannot_be_asked_is_named(line: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        questions_of_samples(lines(line), "numeric")
    assert caught.value.code == "set-invalid" and "line 1" in caught.value.message


def test_other_sets_are_no_samples() -> None:
    assert not is_samples(lines({"prompt": "p", "exact": "a"})) and not is_samples(SetText("set", ""))
