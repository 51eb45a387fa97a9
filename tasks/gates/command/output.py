"""What a program of a command gate says: one JSON object, the last line of its output that is one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from infra.errors import StepFailed
from infra.frozen import Spec, problems

_MOST_VALUES = 100_000


class Metric(Spec):
    """One measure: a value an item, of the candidate and, where a release is live, of that one for the same items."""

    name: str = Field(min_length=1, max_length=100)
    candidate: tuple[float, ...] = Field(min_length=1, max_length=_MOST_VALUES)
    live: tuple[float, ...] | None = None
    unit: str = Field(default="", max_length=40)

    @field_validator("candidate", "live")
    @classmethod
    def _are_numbers(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if not all(map(math.isfinite, values or ())):
            raise ValueError("values are finite numbers")
        return values

    @model_validator(mode="after")
    def _are_pairs(self) -> Metric:
        if self.live is not None and len(self.live) != len(self.candidate):
            raise ValueError("`live` has a value for each item of `candidate`")
        return self

    @property
    def counts(self) -> bool:
        """Whether its values are right answers and wrong ones: 1 and 0, true and false."""
        return {*self.candidate, *(self.live or ())} <= {0.0, 1.0}


class Output(Spec):
    """A verdict of the program's own, or metrics that are judged here, or both."""

    verdict: Literal["passed", "refused", "undecided"] | None = None
    reason: str = Field(default="", max_length=2000)
    metrics: tuple[Metric, ...] = Field(default=(), max_length=100)

    @model_validator(mode="after")
    def _says_something(self) -> Output:
        if self.verdict is None and not self.metrics:
            raise ValueError("has neither `verdict` nor `metrics`")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError("two metrics have one name")
        return self


def read_output(lines: Sequence[str]) -> Output:
    """What the program said. Raises StepFailed `gate-output-invalid`."""
    for line in reversed(lines):
        if line.lstrip().startswith("{"):
            try:
                return Output.model_validate(json.loads(line))
            except (ValueError, RecursionError) as error:
                problem = problems(error) if isinstance(error, ValidationError) else str(error)
                raise _invalid(f"its last line of JSON is not as it should be: {problem}") from error
    raise _invalid("no line of its output is a JSON object")


def _invalid(problem: str) -> StepFailed:
    return StepFailed(
        f"the program of the command gate did not say what it found: {problem}",
        hint='its last line is one JSON object, such as {"verdict": "passed"}: docs/how-to/agreement-and-quality.md',
        code="gate-output-invalid",
    )
