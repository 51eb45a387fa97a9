"""A question with a known answer, and the sets of them: one a line, as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from infra.errors import UsageError
from infra.frozen import Spec, problems
from tasks.gates.quality.schemas import problem_of_schema
from tasks.gates.sets import SetText, lines_of, problem_at

BUNDLED = Path(__file__).with_name("questions.jsonl")

LETTERS = "ABCDEFGHIJ"
"""What choices are called."""

_MOST_PATTERN = 1000

Scorer: TypeAlias = Literal["exact", "contains", "regex", "numeric", "choice", "json_schema"]
SCORERS: tuple[Scorer, ...] = ("exact", "contains", "regex", "numeric", "choice", "json_schema")


class Question(Spec):
    """One question. Exactly one of the fields that SCORERS names says what a right answer is."""

    name: str = ""
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(default=64, ge=1, le=8192)
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends."""
    exact: str | tuple[str, ...] | None = None
    """The answer is this text, or one of these, but for spaces around it."""
    contains: str | tuple[str, ...] | None = None
    """This text is in the answer, or each of these, letter by letter."""
    regex: str | None = Field(default=None, max_length=_MOST_PATTERN)
    """A Python regular expression finds something in the answer."""
    numeric: float | None = None
    """The last number of the answer is this one, give or take `tolerance`."""
    tolerance: float = Field(default=0, ge=0)
    choices: tuple[str, ...] = Field(default=(), max_length=len(LETTERS))
    choice: int | None = Field(default=None, ge=0)
    """The place of the right one of `choices`, from 0."""
    json_schema: JsonValue = None
    """The whole answer is JSON that this schema takes (draft 2020-12)."""

    @property
    def scorer(self) -> Scorer:
        return next(name for name in SCORERS if getattr(self, name) is not None)

    @field_validator("regex")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: JsonValue) -> JsonValue:
        if problem := problem_of_schema(schema):
            raise ValueError(problem)
        return schema

    @model_validator(mode="after")
    def _has_one_scorer(self) -> Question:
        given = [name for name in SCORERS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(SCORERS)}; it has {', '.join(given) or 'none'}")
        if self.choice is not None and not (len(self.choices) > 1 and self.choice < len(self.choices)):
            raise ValueError("`choice` is the place of one of two `choices` or more, from 0")
        if self.choice is None and self.choices:
            raise ValueError("`choices` need the place of the right one as `choice`")
        if self.numeric is not None and not math.isfinite(self.numeric):
            raise ValueError("`numeric` is a finite number")
        return self


def questions_of(found: SetText) -> tuple[Question, ...]:
    """The questions of a set in Enginehouse's own form. Raises UsageError `set-invalid`."""
    return named(found, [(number, read_question(found, number, line)) for number, line in lines_of(found)])


def read_question(found: SetText, line: int, value: object) -> Question:
    """A question from the object of a line. Raises UsageError `set-invalid`, which names the line."""
    try:
        return Question.model_validate(value)
    except ValidationError as error:
        raise problem_at(found, line, problems(error)) from error


def named(found: SetText, questions: Sequence[tuple[int, Question]]) -> tuple[Question, ...]:
    """The questions, each with a name: that of its line if it has none. Raises UsageError `set-invalid`."""
    if not questions:
        raise UsageError(f"{found.name} has no question", code="set-invalid")
    whole = tuple(
        question if question.name else question.model_copy(update={"name": f"line {line}"})
        for line, question in questions
    )
    names = [question.name for question in whole]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{found.name}: several questions are named {', '.join(twice[:3])}", code="set-invalid")
    return whole


def bundled() -> tuple[Question, ...]:
    """Those of Enginehouse."""
    return questions_of(SetText(BUNDLED.name, BUNDLED.read_text(encoding="utf-8")))
