"""What garbage collection keeps beside what is wanted: what people pinned, and what a run is about to use.

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
    """Somebody wants `reference` kept."""

    reference: str
    """`KIND/MODEL/IDENTITY`, or `TARGET/MODEL@N`."""
    reason: str = ""
    created: datetime = Field(default_factory=_now)


class Use(Record):
    """The artifacts that a run makes or finds. The object's own age says when it was last written."""

    references: tuple[str, ...]
    """As `KIND/MODEL/IDENTITY`."""
    flow_run: str = ""


def pin(bucket: Bucket, reference: Reference, reason: str = "") -> None:
    """Keep an artifact, or a release with its engine, until it is unpinned. Raises UsageError for a public name."""
    bucket.put(_pin_key(reference), record_bytes(Pin(reference=str(reference), reason=reason)))


def unpin(bucket: Bucket, reference: Reference) -> bool:
    """Whether there was a pin to take away."""
    key = _pin_key(reference)
    there = bucket.get(key) is not None
    bucket.delete(key)
    return there


def _pin_key(reference: Reference) -> str:
    if isinstance(reference, PublicName):
        raise UsageError(
            f"{reference} is a public name, and moves", hint=f"pin one of its releases: {reference.model}@N"
        )
    if isinstance(reference, ReleaseRef):
        return f"{PINS}releases/{reference.target}/{reference.model}/{reference.release}.json"
    return f"{PINS}{reference}.json"


def note_use(bucket: Bucket, model: str, refs: Iterable[ArtifactRef], flow_run: str) -> None:
    """Keep `refs` from being collected while a run works with them. Call it before looking for any of them."""
    body = record_bytes(Use(references=tuple(str(ref) for ref in refs), flow_run=flow_run))
    # A key of its own: what removes an old record can then never remove a new one.
    bucket.put(f"{USES}{model}/{uuid.uuid4().hex}.json", body)
