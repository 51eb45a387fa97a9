"""One move of a model's public name: who moved it, when, from which release to which, and why.

targets/TARGET/MODEL/moves/NUMBER.json   each created once, in the order in which the name moved
"""

from __future__ import annotations

import getpass
import platform
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from tasks.store.record import Record

MoveKind = Literal["promoted", "rolled back"]


def mover() -> str:
    """Who runs this, as `user@host`; in a container its user may have no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{platform.node()}"


def _now() -> datetime:
    return datetime.now(UTC)


class Move(Record):
    """The public name went to `release`."""

    number: int = Field(ge=1)
    """In the order of the store: the first is 1."""
    kind: MoveKind
    release: int
    instead_of: int | None
    """The release that was public before; None if none was."""
    by: str = Field(default_factory=mover)
    flow_run: str = ""
    reason: str = ""
    created: datetime = Field(default_factory=_now)
