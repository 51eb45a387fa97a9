"""What a right answer is."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.gates.quality.questions import Question
from tasks.gates.quality.scoring import is_right, lettered, likeliest_choice

COLOURS: dict[str, Any] = {"choices": ("red", "green", "blue"), "choice": 1}
SCHEMA: dict[str, Any] = {
    "json_schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
}


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        ({"exact": "Paris"}, ["Paris", " Paris\n"], ["paris", "Paris.", ""]),
        ({"exact": ("Paris", "paris")}, ["Paris", "paris"], ["PARIS"]),
        ({"contains": "Paris"}, ["It is Paris."], ["It is paris."]),
        ({"contains": ("one", "two")}, ["two and one"], ["one"]),
        ({"regex": r"(?i)^\W*yes\b"}, ["Yes.", " yes, it is"], ["yesterday", "no"]),
        ({"numeric": 42}, ["42", "17 + 25 = 42.", "It is 42.0"], ["42 or 43", "forty-two", ""]),
        ({"numeric": -1234.5}, ["= -1,234.5"], ["1,234.5"]),
        ({"numeric": 3.14, "tolerance": 0.01}, ["3.141"], ["3.2"]),
        ({"numeric": 0}, ["0"], ["none", "10"]),
        (COLOURS, ["B", "B. green", "The answer is (B)."], ["A", "green", "b", "AB"]),
        (SCHEMA, ['{"a": 1}', ' {"a": 1, "b": 2}\n'], ['{"a": "1"}', "{}", '```{"a": 1}```', "", "[" * 100_000]),
        ({"json_schema": {"$ref": "http://127.0.0.1:9/schema"}}, [], ["{}"]),
        ({"json_schema": False}, [], ["{}", "1"]),
    ],
)
def test_each_scorer_takes_what_is_right_and_nothing_else(
    wanted: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    question = Question(prompt="p", **wanted)
    assert [answer for answer in right if not is_right(question, answer)] == []
    assert [answer for answer in wrong if is_right(question, answer)] == []


def test_the_likeliest_letter_is_the_choice() -> None:
    question = Question(prompt="p", **COLOURS)
    assert likeliest_choice(question, [("The", -0.1), (" B", -2.0), ("A", -2.5), ("D", -0.2), ("B", -9.0)]) == 1
    assert likeliest_choice(question, [("The", -0.1), ("�", -1.0), ("D", -2.0)]) is None


def test_the_choices_stand_below_the_prompt() -> None:
    assert lettered(Question(prompt="Which?", **COLOURS)).splitlines()[:4] == [
        "Which?",
        "A. red",
        "B. green",
        "C. blue",
    ]
    letters = Question(prompt="Which?\nA. red\nB. green\nAnswer:", choices=("A", "B"), choice=0)
    assert lettered(letters) == letters.prompt
