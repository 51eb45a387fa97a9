"""What a gate that is a program of one's own may be asked for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from infra.frozen import FrozenDict, Spec
from tasks.models.gate_specs.base import GateSpec


class MetricSpec(Spec):
    """What is asked of one metric that a program reports. One of `margin` and `floor`, or both."""

    margin: float | None = Field(
        default=None, ge=0, description="How much worse its mean may be than that of the live release."
    )
    floor: float | None = Field(
        default=None,
        description="What its mean must reach, a first release's too; with `better: less` the most it may be.",
    )
    better: Literal["more", "less"] = Field(default="more", description="Which way the metric goes.")

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.margin is None and self.floor is None:
            raise ValueError("needs a `margin`, a `floor`, or both")
        return self


class CommandSpec(GateSpec):
    """A program that asks the candidate and says what it found as JSON."""

    gate: Literal["command"] = "command"
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="The program with its arguments. No shell reads them."
    )
    timeout_s: float = Field(default=1800, gt=0, le=86_400, description="It is ended then, which is an error.")
    metrics: dict[Annotated[str, Field(min_length=1, max_length=100)], MetricSpec] = Field(
        default={}, validate_default=True, description="What is asked of the metrics that it reports, by their names."
    )

    @field_validator("metrics")
    @classmethod
    def _frozen(cls, metrics: dict[str, MetricSpec]) -> dict[str, MetricSpec]:
        return FrozenDict(metrics)
