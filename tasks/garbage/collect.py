"""Garbage collection: finds what may go and why, and deletes it beside running builds.

A manifest outlives its files. It is first marked `collected`, on the condition that nobody replaced it; then the files
are deleted. A run that looks for the artifact after the mark makes it again. A run that looked before has noted that it
uses it (`keep.note_use`, an intent, a wanted state), and these notes are read again between marking and deleting.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from infra.s3.bucket import Bucket, Entry, UnfinishedUpload
from tasks.garbage.reach import RUNNING_SECONDS, Reached, reached
from tasks.store.artifact import ArtifactRef
from tasks.store.attempt import RESUME_SECONDS
from tasks.store.cell import written
from tasks.store.inventory import Stored, everything, identity_in, in_parallel, manifest_at
from tasks.store.lease import discard, held

GRACE_DAYS = 7.0
EXPIRED_SECONDS = RESUME_SECONDS + RUNNING_SECONDS
"""What was left so long ago, nobody goes on with: leases last seconds, and a killed upload is resumed for a day. By the
store's clock."""


@dataclass(frozen=True)
class Garbage:
    """Objects that may go together; `size` in bytes.

    `artifact` is set if they are all files of that artifact, whose manifest is marked first. `attempt` is set if they
    are the files of an attempt that the manifest does not name. `lease` has the identity and the ETag that a lease had.
    """

    name: str
    why: str
    keys: tuple[str, ...]
    size: int
    artifact: ArtifactRef | None = None
    attempt: tuple[ArtifactRef, str] | None = None
    lease: tuple[str, str] | None = None


@dataclass
class Survey:
    """What may go, and why the rest stays. `kept` has the artifacts whose files are in the store."""

    grace_seconds: float
    running_seconds: float
    expired_seconds: float
    garbage: list[Garbage] = field(default_factory=list[Garbage])
    uploads: list[UnfinishedUpload] = field(default_factory=list[UnfinishedUpload])
    kept: dict[ArtifactRef, str] = field(default_factory=dict[ArtifactRef, str])
    restored: list[ArtifactRef] = field(default_factory=list[ArtifactRef])
    """Wanted artifacts that are marked though their files still exist: the collection that marked them was killed."""

    @property
    def size(self) -> int:
        """Bytes that would be freed, without those of unfinished uploads, which no listing has."""
        return sum(item.size for item in self.garbage)

    def document(self) -> dict[str, JsonValue]:
        """The survey as `--json` prints it."""
        return {
            "bytes": self.size,
            "garbage": [
                {"name": item.name, "why": item.why, "objects": len(item.keys), "bytes": item.size}
                for item in self.garbage
            ],
            "uploads": [{"key": upload.key, "seconds": round(upload.age)} for upload in self.uploads],
            "kept": {str(ref): why for ref, why in self.kept.items()},
        }


def _bytes(size: int) -> str:
    return f"{size:,} bytes"


def survey_lines(found: Survey, told: Callable[[int], str] = _bytes) -> Iterator[str]:
    """The survey for people: what may go, and how many artifacts stay for which reason. `told` says a size."""
    if found.garbage or found.uploads:
        yield f"{'SIZE':>10}  WHAT MAY GO, AND WHY"
    for item in found.garbage:
        yield f"{told(item.size):>10}  {item.name}  {item.why}"
    for upload in found.uploads:
        yield f"{'unknown':>10}  {upload.key}  an upload that was not completed for {upload.age / 86400:.1f} days"
    reasons = Counter("a release or a pin needs it" if "release " in why else why for why in found.kept.values())
    for why, count in reasons.most_common():
        yield f"kept: {count} artifact{'s' * (count != 1)}, {why}"
    yield f"{told(found.size)} in {sum(len(item.keys) for item in found.garbage)} objects may go"


def survey(
    bucket: Bucket,
    grace_seconds: float,
    *,
    running_seconds: float = RUNNING_SECONDS,
    expired_seconds: float = EXPIRED_SECONDS,
) -> Survey:
    """Look at everything and change nothing.

    `grace_seconds`: keep what was made or used so recently. `running_seconds`: what a run wrote so recently may still
    be in the making, however short the grace time. `expired_seconds`: a lease this old has no holder, and an upload
    this old is not gone on with.
    Raises StoreError, and ArtifactDamaged if a live release does not say which engine it needs.
    """
    stored = everything(bucket)
    wanted = reached(bucket, grace_seconds, running_seconds)
    found = Survey(grace_seconds, running_seconds, expired_seconds)
    for item in stored:
        found.garbage += [
            _single(entry, "the manifest of a damaged artifact that was replaced")
            for entry in item.damaged
            if entry.age >= grace_seconds
        ]
        if item.manifest is None or not item.attempts:
            continue
        if why := _why_kept(item, item.manifest, wanted, grace_seconds):
            found.kept[item.ref] = why
        else:
            keys = [entry for files in item.attempts.values() for entry in files]
            found.garbage.append(_together(str(item.ref), "nothing uses it", keys, artifact=item.ref))
    _look_at_attempts(bucket, stored, wanted, found)
    found.garbage += [_lease(entry) for entry in bucket.list("leases/") if entry.age >= expired_seconds]
    found.garbage += [_single(entry, "the run that used these artifacts is over") for entry in wanted.unused]
    found.uploads = [
        upload
        for upload in bucket.unfinished_uploads("artifacts/")
        if upload.age >= max(grace_seconds, expired_seconds) and identity_in(upload.key) not in wanted.leased
    ]
    return found


def _why_kept(item: Stored, manifest: Entry, wanted: Reached, grace_seconds: float) -> str:
    if item.ref in wanted.reasons:
        return wanted.reasons[item.ref]
    if item.ref.identity in wanted.leased:
        return "a run is making it"
    return "younger than the grace time" if manifest.age < grace_seconds else ""


def _look_at_attempts(bucket: Bucket, stored: list[Stored], wanted: Reached, found: Survey) -> None:
    """Find attempts that lost, or were never committed, and wanted artifacts that are marked and whole."""
    torn = [item for item in stored if item.attempts and item.manifest is None]
    unclear = [
        item for item in stored if item.ref in found.kept and (len(item.attempts) > 1 or item.ref in wanted.reasons)
    ]
    known = [*(None for _ in torn), *in_parallel(lambda item: manifest_at(bucket, item.ref), unclear)]
    for item, manifest in zip([*torn, *unclear], known, strict=True):
        committed = None if manifest is None else manifest.attempt
        if manifest is None and item.manifest is not None:
            continue  # damaged: only its rebuild decides which attempt counts
        if manifest is not None and manifest.state == "collected" and committed in item.attempts:
            found.restored.append(item.ref)
        if item.ref.identity in wanted.leased:
            continue
        for attempt, files in item.attempts.items():
            # The age of the newest file is how long its writer has been idle.
            quiet = min(file.age for file in files)
            if attempt != committed and quiet >= max(found.grace_seconds, found.expired_seconds):
                why = "an attempt that was never committed"
                found.garbage.append(_together(f"{item.ref}/{attempt}", why, files, attempt=(item.ref, attempt)))


def _together(
    name: str,
    why: str,
    entries: list[Entry],
    *,
    artifact: ArtifactRef | None = None,
    attempt: tuple[ArtifactRef, str] | None = None,
) -> Garbage:
    keys, size = tuple(entry.key for entry in entries), sum(entry.size for entry in entries)
    return Garbage(name, why, keys, size, artifact, attempt)


def _single(entry: Entry, why: str) -> Garbage:
    return Garbage(entry.key, why, (entry.key,), entry.size)


def _lease(entry: Entry) -> Garbage:
    identity = entry.key.removeprefix("leases/").removesuffix(".json")
    why = "this lease was not renewed for a day"
    return Garbage(entry.key, why, (entry.key,), entry.size, lease=(identity, entry.etag))


def collect(bucket: Bucket, found: Survey, holder: str, lease_seconds: float) -> list[Garbage]:
    """Delete what a survey found, unless it is wanted by now; returns what was kept after all. Raises StoreError.

    A lease lets one collection at a time run in a store.
    """
    with held(bucket, "collect-garbage", holder, lease_seconds):
        in_parallel(lambda ref: _set_state(bucket, ref, "present"), found.restored)
        artifacts = [item.artifact for item in found.garbage if item.artifact is not None]
        # By the text of the reference, which says where it lies: one may be there in both layouts.
        done = in_parallel(lambda ref: _set_state(bucket, ref, "collected"), artifacts)
        marked = dict(zip(map(str, artifacts), done, strict=True))
        wanted = reached(bucket, found.grace_seconds, found.running_seconds)
        again = [ref for ref in artifacts if ref in wanted.reasons or ref.identity in wanted.leased]
        in_parallel(lambda ref: _set_state(bucket, ref, "present"), again)
        marked.update(dict.fromkeys(map(str, again), False))
        leases = [item for item in found.garbage if item.lease is not None]
        others = [item for item in found.garbage if item.lease is None]
        may_go = in_parallel(lambda item: _may_go(bucket, item, marked, wanted), others)
        decided = list(zip(others, may_go, strict=True))
        in_parallel(bucket.delete, [key for item, going in decided if going for key in item.keys])
        in_parallel(
            bucket.give_up, [upload for upload in found.uploads if identity_in(upload.key) not in wanted.leased]
        )
        gone = in_parallel(lambda item: _discard(bucket, item, holder, lease_seconds), leases)
        decided += zip(leases, gone, strict=True)
    return [item for item, going in decided if not going]


def _may_go(bucket: Bucket, item: Garbage, marked: Mapping[str, bool], wanted: Reached) -> bool:
    if item.artifact is not None:
        return marked[str(item.artifact)]
    if item.attempt is None:
        return True
    ref, attempt = item.attempt
    manifest = manifest_at(bucket, ref)
    return ref.identity not in wanted.leased and (manifest is None or manifest.attempt != attempt)


def _discard(bucket: Bucket, item: Garbage, holder: str, lease_seconds: float) -> bool:
    assert item.lease is not None
    identity, etag = item.lease
    return discard(bucket, identity, etag, holder, lease_seconds)


def _set_state(bucket: Bucket, ref: ArtifactRef, state: Literal["present", "collected"]) -> bool:
    """Write `state` into the manifest. Returns False if somebody replaced it meanwhile, or if it cannot be read."""
    key = ref.folder + "manifest.json"
    record = bucket.get(key)
    if record is None:
        return False
    try:
        # As a document, so that fields stay which later code has added.
        document = {**json.loads(record.body), "state": state}
    except (ValueError, TypeError):
        return False
    # No Cell: a manifest that somebody replaced meanwhile is another, and not ours to mark.
    return written(bucket, key, json.dumps(document, indent=1, ensure_ascii=False).encode(), record.etag)
