"""What garbage collection keeps besides the wanted releases: what people pinned, and what a run is about to use.

pins/KIND/IDENTITY.json                an artifact that stays, though nothing uses it
pins/releases/TARGET/MODEL/N.json      a release that stays
uses/MODEL/….json                      the artifacts of a run's plan, written before the run looks for any of them
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import ClassVar

from pydantic import Field

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, recorded
from tasks.store.record import Record, record_bytes
from tasks.targets.references import PublicName, Reference, ReleaseRef

PINS = "pins/"
USES = "uses/"


def _now() -> datetime:
    return datetime.now(UTC)


class Pin(Record):
    """Keeps `reference` until somebody unpins it."""

    newest: ClassVar[int] = 2

    schema_version: int = 2
    reference: str
    """`KIND/IDENTITY` (up to version 1 `KIND/MODEL/IDENTITY`), or `TARGET/MODEL@N`."""
    reason: str = ""
    created: datetime = Field(default_factory=_now)


class Use(Record):
    """The artifacts that a run makes or finds. The age of the object says when it was written."""

    newest: ClassVar[int] = 3

    schema_version: int = 2
    """3 if it names an artifact of kind `reference`, which readers of version 2 do not know."""
    references: tuple[str, ...]
    """As `KIND/IDENTITY`, up to version 1 as `KIND/MODEL/IDENTITY`."""
    flow_run: str = ""


def pin(bucket: Bucket, reference: Reference, reason: str = "") -> None:
    """Keep an artifact, or a release with its engine, until it is unpinned.

    Raises UsageError for a public name, which moves from release to release.
    """
    bucket.put(_pin_key(reference), record_bytes(Pin(reference=str(reference), reason=reason)))


def unpin(bucket: Bucket, reference: Reference) -> bool:
    """Remove the pin; returns False if there was none."""
    if not isinstance(reference, ArtifactRef):
        keys = [_pin_key(reference)]
    else:  # pinned where it lay then
        keys = [entry.key for entry in bucket.list(PINS) if pinned_by(entry.key) == reference]
    pinned = [key for key in keys if bucket.get(key) is not None]
    for key in pinned:
        bucket.delete(key)
    return bool(pinned)


def pinned_by(key: str) -> ArtifactRef | ReleaseRef:
    """What the pin at `key` keeps. Raises ArtifactDamaged, code `record-invalid`, if that is nothing."""
    parts = key.removeprefix(PINS).removesuffix(".json").split("/")
    if parts[0] == "releases":
        return ReleaseRef(parts[1], parts[2], int(parts[3]))
    return recorded("/".join(parts))


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
    used = tuple(refs)
    version = Use.newest if any(ref.kind == "reference" for ref in used) else 2
    body = record_bytes(Use(schema_version=version, references=tuple(str(ref) for ref in used), flow_run=flow_run))
    # A key of its own, so that a collection that deletes an old record never deletes a new one.
    bucket.put(f"{USES}{model}/{uuid.uuid4().hex}.json", body)
