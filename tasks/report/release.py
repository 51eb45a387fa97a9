"""What the store knows of one release, read once for its report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError

from infra.errors import ArtifactDamaged, FormatNewer, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.why import why
from tasks.explain.why_text import summary
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.inventory import manifests
from tasks.targets.current import Current, ReleaseState
from tasks.targets.gate_record import GateRecord
from tasks.targets.gate_records import GateRecords
from tasks.targets.references import ReleaseRef
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.waves import WaveOutcome, wave_outcome

_MOST_ARTIFACTS = 24
"""Of the lineage: an engine, its checkpoint, the weights, and its adapters."""

_UNREADABLE = (UsageError, ArtifactDamaged, FormatNewer, ValidationError)
"""What one record may cost: its part of the report, not the report."""


@dataclass(frozen=True)
class Made:
    """One artifact that the release is made of. `manifest` is None if the store has none any more."""

    ref: ArtifactRef
    manifest: Manifest | None


@dataclass(frozen=True)
class ReleaseReport:
    """One release: its records, and what it is made of."""

    target: str
    intent: Intent
    result: Result | None
    gates: tuple[GateRecord, ...]
    before: Intent | None
    """The release that was live when this one was made. None if none was, or nobody knows."""
    why: str
    """What its artifacts differ in from those of the one before, in a sentence. Empty if there is none to compare."""
    made_of: tuple[Made, ...]
    wave: WaveOutcome | None = None
    """What came of its wave, where it was rolled out in waves. None in the page that is kept."""
    current: Current | None = None
    """What is public now. None in the page that is kept, which tells of the moment of the verdict."""

    @property
    def reference(self) -> ReleaseRef:
        return ReleaseRef(self.target, self.intent.model, self.intent.release)

    @property
    def state(self) -> ReleaseState | None:
        """What became of it. None in the page that is kept."""
        return None if self.current is None else self.current.state_of(self.intent.release, self.result)

    def document(self) -> dict[str, object]:
        """What `enginehouse report --json` prints."""
        return {
            "model": self.intent.model,
            "target": self.target,
            "release": self.intent.release,
            "state": self.state,
            "public": None if self.current is None else self.current.public,
            "why": self.why,
            "intent": self.intent.model_dump(mode="json"),
            "result": None if self.result is None else self.result.model_dump(mode="json"),
            "gates": [record.model_dump(mode="json") for record in self.gates],
            "wave": None if self.wave is None else self.wave.model_dump(mode="json"),
            "made_of": [_document(made) for made in self.made_of],
        }


def read_report(target: Target, intent: Intent, *, now: bool) -> ReleaseReport:
    """All that the report tells. With `now` also what is public at this moment.

    What cannot be read of an artifact, or of the release before, is left out. Raises StoreError.
    """
    model, release = intent.model, intent.release
    result = target.result(model, release)
    return ReleaseReport(
        target=target.name,
        intent=intent,
        result=result,
        gates=tuple(GateRecords(target, model, release).all()),
        before=_before(target, intent, result),
        why=_why(target, intent, result),
        made_of=tuple(_made_of(target.bucket, intent)),
        wave=wave_outcome(target, model, release).read() if now else None,
        current=target.current(model)[0] if now else None,
    )


def _compared(intent: Intent, result: Result | None) -> int | None:
    return intent.live if result is None or result.live is None else result.live


def _before(target: Target, intent: Intent, result: Result | None) -> Intent | None:
    number = _compared(intent, result)
    try:
        return None if number is None else target.intent(intent.model, number)
    except _UNREADABLE:
        return None


def _why(target: Target, intent: Intent, result: Result | None) -> str:
    number = _compared(intent, result)
    if number is None:
        return ""
    ours, theirs = (ReleaseRef(target.name, intent.model, each) for each in (intent.release, number))
    try:
        return summary(why(target.bucket, ours, theirs))
    except _UNREADABLE:
        return ""  # artifacts of one of them were collected


def _made_of(bucket: Bucket, intent: Intent) -> Iterator[Made]:
    """The repository, then what it was made from, up to the weights."""
    seen: set[ArtifactRef] = set()
    try:
        waiting = [intent.artifact]
        while waiting := [ref for ref in dict.fromkeys(waiting) if ref not in seen]:
            waiting = waiting[: _MOST_ARTIFACTS - len(seen)]
            seen |= {*waiting}
            found = manifests(bucket, waiting)
            yield from (Made(ref, found.get(ref)) for ref in waiting)
            waiting = [ArtifactRef.parse(text) for each in found.values() for text in each.inputs.values()]
    except _UNREADABLE:
        return


def _document(made: Made) -> Mapping[str, JsonValue]:
    if made.manifest is None:
        return {"artifact": str(made.ref), "state": "without a manifest"}
    return {
        "artifact": str(made.ref),
        "state": made.manifest.state,
        "digest": f"sha256:{made.manifest.digest}",
        "bytes": made.manifest.size,
        "made": made.manifest.created.isoformat(),
        "by": f"{made.manifest.producer.task} on {made.manifest.producer.host}",
    }
