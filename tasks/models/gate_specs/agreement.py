"""What the gate of agreement may be asked for."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from tasks.models.gate_specs.base import GateSpec
from tasks.models.gate_specs.set_source import SetSource

UseReference: TypeAlias = Literal["never", "auto", "always"]
"""Whether a candidate is compared with the reference of its weights. auto: where no live release stands beside it, or
the one that does is of another kind or precision."""

_NEVER: UseReference = "never"
_REFERENCE_MARGIN = 0.05


class AgreementSpec(GateSpec):
    """The next token after the same beginnings of texts, by the candidate, the live release, and the reference."""

    gate: Literal["agreement"] = "agreement"
    passages: SetSource | None = Field(
        default=None, description="Texts of your own: JSON lines with `text`, or paragraphs. None: 64 of Enginehouse."
    )
    positions: int = Field(default=4, ge=1, le=64, description="Places in each passage where both are asked.")
    margin: float = Field(
        default=0.05,
        ge=0.001,
        le=0.5,
        description="The share of next tokens that may differ from those of the live release.",
    )
    # Left out where they ask for nothing: what a record says was asked stays what files of before have asked.
    reference: UseReference = Field(
        default=_NEVER,
        description="Compare it with the weights before they are quantized, too. auto: where no live release is beside "
        "it, or recipe.kind or its precision has changed. never, always.",
        exclude_if=lambda use: use == _NEVER,
    )
    reference_margin: float = Field(
        default=_REFERENCE_MARGIN,
        ge=0.001,
        le=0.5,
        description="The share of next tokens that may differ from those of the reference.",
        exclude_if=lambda margin: margin == _REFERENCE_MARGIN,
    )
    max_seconds: float = Field(
        default=900, gt=0, le=86_400, description="No passage is begun later. What has been asked by then is judged."
    )
