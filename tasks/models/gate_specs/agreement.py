"""What the gate of agreement may be asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.models.gate_specs.base import GateSpec
from tasks.models.gate_specs.set_source import SetSource


class AgreementSpec(GateSpec):
    """The next token after the same beginnings of texts, by the candidate and by the live release."""

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
    max_seconds: float = Field(
        default=900, gt=0, le=86_400, description="No passage is begun later. What has been asked by then is judged."
    )
