"""What the release watch remembers: one object of the store, moved with `If-Match`.

Models' files are people's own and are not rewritten. The version that a model was moved to lives here, and `rebuild`
takes it by default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import Field

from infra.s3.bucket import Bucket
from tasks.models.spec import Model
from tasks.store.cell import Cell
from tasks.store.record import Record

_KEY = "release-watch.json"


class Followed(Record):
    """A version that a model was moved to, since a rebuild with it completed."""

    version: str
    flow_run: str
    since: datetime = Field(default_factory=lambda: datetime.now(UTC))


class FailedRebuilds(Record):
    """Rebuilds of a model for one version that did not complete. `over`: it is not tried again by itself.

    `subject` is what `subject_of` says of the model's file: a changed file is another subject, and tried anew.
    """

    version: str
    subject: str
    count: int
    over: bool
    reason: str
    flow_run: str


class WatchRecord(Record):
    followed: dict[str, Followed] = Field(default_factory=dict[str, Followed])
    attempts: dict[str, FailedRebuilds] = Field(default_factory=dict[str, FailedRebuilds])
    shown: str = ""
    """Digest of the table that was shown last."""


def read_record(bucket: Bucket) -> tuple[WatchRecord, str | None]:
    """The record and its ETag; an empty one and None where nothing was ever watched."""
    return _cell(bucket).read()


def move_record(bucket: Bucket, change: Callable[[WatchRecord], WatchRecord]) -> WatchRecord:
    """Apply `change`, as `Cell.move` does."""
    return _cell(bucket).move(change)


def _cell(bucket: Bucket) -> Cell[WatchRecord]:
    return Cell(bucket, _KEY, WatchRecord())


def followed_version(bucket: Bucket, model: str) -> str | None:
    """The version that the model was moved to, if ever."""
    followed = read_record(bucket)[0].followed.get(model)
    return None if followed is None else followed.version


def subject_of(model: Model) -> str:
    """A digest of all in a model's file that a rebuild depends on."""
    told = model.model_dump_json(by_alias=True, exclude={"description", "updates"})
    return hashlib.sha256(told.encode()).hexdigest()[:16]
