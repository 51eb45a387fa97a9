"""What the release watch remembers: `release-watch.json` in the store, moved with `If-Match`.

The watch never rewrites a model's file: files belong to people. The version that it moved a model to is in this record,
and a rebuild takes it by default.
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
    """The version that a model was moved to when a rebuild with it had completed."""

    version: str
    flow_run: str
    since: datetime = Field(default_factory=lambda: datetime.now(UTC))


class FailedRebuilds(Record):
    """How many rebuilds of a model for one version failed or crashed. If `over`, the watch tries no more by itself.

    `subject` is the digest `subject_of` of the model's file: a changed file is another subject, and is tried again.
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
    """The version that the model was moved to. None if it was never moved."""
    followed = read_record(bucket)[0].followed.get(model)
    return None if followed is None else followed.version


def carry_over(bucket: Bucket, former: str, name: str) -> None:
    """Have the model `name` follow the version that the watch moved `former` to, unless it follows one itself."""
    followed = read_record(bucket)[0].followed.get(former)
    if followed is not None:
        move_record(bucket, lambda known: known.model_copy(update={"followed": {name: followed, **known.followed}}))


def subject_of(model: Model) -> str:
    """A digest of everything in a model's file that a rebuild depends on."""
    relevant = model.model_dump_json(by_alias=True, exclude={"description", "labels", "updates"})
    return hashlib.sha256(relevant.encode()).hexdigest()[:16]
