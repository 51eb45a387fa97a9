"""A person's decision on a release. Both records are created once.

targets/TARGET/MODEL/N/approval-request.json   since when a person is asked: its age, by the store's clock
targets/TARGET/MODEL/N/approval.json           the decision; the first one counts
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, JsonValue

from tasks.store.record import Record

ApprovalState = Literal["approved", "rejected", "timed-out", "superseded"]


def _now() -> datetime:
    return datetime.now(UTC)


class ApprovalRequest(Record):
    """A person is asked about release N. It is written before the verdict, so that nothing is public without it."""

    release: int
    live: int | None = None
    """The release that was public when the gates began. None if none was."""
    timeout_s: float = Field(gt=0)
    """After so many seconds without a decision the release is not promoted."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Of the rebuild that goes on once somebody has approved."""
    flow_run: str = ""
    created: datetime = Field(default_factory=_now)


class Approval(Record):
    """What became of the request: a person decided, or it timed out, or another release took its place."""

    release: int
    state: ApprovalState
    by: str = ""
    """Who decided. Empty where nobody did."""
    note: str = ""
    flow_run: str = ""
    created: datetime = Field(default_factory=_now)
