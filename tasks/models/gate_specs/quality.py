"""What the gate of quality may be asked for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from tasks.models.gate_specs.base import GateSpec
from tasks.models.gate_specs.set_source import SetSource

SampleScorer: TypeAlias = Literal["exact", "contains", "numeric"]
"""How answers are scored that are in a set which does not say it itself."""


class QualitySpec(GateSpec):
    """Questions with known answers, put to the candidate and to the live release."""

    gate: Literal["quality"] = "quality"
    questions: SetSource | None = Field(
        default=None, description="A set of your own, or samples of lm-evaluation-harness. None: that of Enginehouse."
    )
    scorer: SampleScorer | None = Field(
        default=None, description="Of samples whose answers are written: what a right answer is, by their target."
    )
    margin: float = Field(
        default=0.05, ge=0, le=0.5, description="The share of right answers that may be lost against the live release."
    )
    floor: float | None = Field(
        default=None, gt=0, lt=1, description="The share of right answers that a candidate must have, a first one too."
    )
    endings: float | None = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="The share of written answers that may run on where those of the live release end. None: any.",
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Questions that a node is asked at the same time.")
    max_seconds: float = Field(
        default=1800, gt=0, le=86_400, description="No question is put later. What has been answered by then is judged."
    )
