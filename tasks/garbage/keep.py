"""What garbage collection keeps besides the wanted releases: what people pinned, and what a run is about to use.

pins/KIND/MODEL/IDENTITY.json          an artifact that stays, though nothing uses it
pins/releases/TARGET/MODEL/N.json      a release that stays
uses/MODEL/….json                      the artifacts of a run's plan, written before the run looks for any of them
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import Field

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef
from tasks.store.record import Record, record_bytes
from tasks.targets.references import PublicName, Reference, ReleaseRef

PINS = "pins/"
USES = "uses/"


def _now() -> datetime:
    return datetime.now(UTC)


class Pin(Record):
    """Keeps `reference` until somebody unpins it."""

    reference: str
    """`KIND/MODEL/IDENTITY`, or `TARGET/MODEL@N`."""
    reason: str = ""
    created: datetime = Field(default_factory=_now)


class Use(Record):
    """The artifacts that a run makes or finds. The age of the object says when it was written."""

    references: tuple[str, ...]
    """As `KIND/MODEL/IDENTITY`."""
    flow_run: str = ""


def pin(bucket: Bucket, reference: Reference, reason: str = "") -> None:
    """Keep an artifact, or a release with its engine, until it is unpinned.

    Raises UsageError for a public name, which moves from release to release.
    """
    bucket.put(_pin_key(reference), record_bytes(Pin(reference=str(reference), reason=reason)))


def unpin(bucket: Bucket, reference: Reference) -> bool:
    """Remove the pin; returns False if there was none."""
    key = _pin_key(reference)
    pinned = bucket.get(key) is not None
    bucket.delete(key)
    return pinned


def _pin_key(reference: Reference) -> str:
    if isinstance(reference, PublicName):
        raise UsageError(
            f"{reference} is a public name, which moves from release to release",
            hint=f"pin one of its releases: {reference.model}@N",
        )
    if isinstance(reference, ReleaseRef):
        return f"{PINS}releases/{reference.target}/{reference.model}/{reference.release}.json"
    return f"{PINS}{reference}.json"


def note_use(bucket: Bucket, model: str, refs: Iterable[ArtifactRef], flow_run: str) -> None:
    """Keep `refs` from being collected while a run works with them. Call it before looking for any of them."""
    body = record_bytes(Use(references=tuple(str(ref) for ref in refs), flow_run=flow_run))
    # A key of its own, so that a collection that deletes an old record never deletes a new one.
    bucket.put(f"{USES}{model}/{uuid.uuid4().hex}.json", body)
