"""A model left a target: who took its public name away, when, and why.

targets/TARGET/MODEL/retirements/NUMBER.json   each created once, in the order in which the model left
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from tasks.store.record import Record
from tasks.targets.move import mover


def _now() -> datetime:
    return datetime.now(UTC)


class Retirement(Record):
    """The public name answers nobody any more."""

    number: int = Field(ge=1)
    """In the order of the store: the first is 1."""
    release: int | None
    """The release that was public before; None if none was."""
    by: str = Field(default_factory=mover)
    reason: str = ""
    created: datetime = Field(default_factory=_now)
