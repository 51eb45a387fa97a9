"""What the store knows of one release, read once for its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from infra.errors import ArtifactDamaged, FormatNewer, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.standing import Standing
from tasks.explain.why import why
from tasks.explain.why_text import summary
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.inventory import manifests
from tasks.store.record import Record
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.gate_record import GateRecord
from tasks.targets.gate_records import GateRecords
from tasks.targets.references import ReleaseRef
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.traffic import Shift, Traffic, shift, traffic
from tasks.targets.watch_record import Watching, WatchOutcome, WatchRecords
from tasks.targets.waves import WaveOutcome, wave_outcome

_MOST_ARTIFACTS = 24
"""Of the lineage: an engine, its checkpoint, the weights, and its adapters."""

_UNREADABLE = (UsageError, ArtifactDamaged, FormatNewer, ValidationError)
"""What one record may cost: its part of the report, not the report."""


_T = TypeVar("_T")


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
    request: ApprovalRequest | None = None
    """What a person was asked. None if nobody was."""
    approval: Approval | None = None
    """What was decided, as far as a record says so."""
    shift: Shift | None = None
    """What came of the requests that it had as a candidate."""
    watch: WatchOutcome | None = None
    """What came of the watch over it."""
    current: Current | None = None
    """What is public now. None in the page that is kept, which tells of the moment of the verdict."""
    traffic: Traffic | None = None
    """What goes to candidates now. None in that page, too."""
    watching: Watching | None = None
    """The watch over it, if that goes on now."""

    @property
    def reference(self) -> ReleaseRef:
        return ReleaseRef(self.target, self.intent.model, self.intent.release)

    @property
    def state(self) -> str | None:
        """What became of it. None in the page that is kept."""
        if self.current is None:
            return None
        number = self.intent.release
        return Standing(
            self.current.state_of(number, self.result),
            self.result,
            number in self.current.loaded,
            self.request is not None,
            self.approval,
            self.shift,
        ).word

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
            "wave": _dumped(self.wave),
            "approval_request": _dumped(self.request),
            "approval": _dumped(self.approval),
            "shift": _dumped(self.shift),
            "watch": _dumped(self.watch),
            "made_of": [_document(made) for made in self.made_of],
        }


def read_report(target: Target, intent: Intent, *, now: bool) -> ReleaseReport:
    """All that the report tells. With `now` also what is public at this moment.

    What cannot be read of an artifact, of the release before, or of what came after the verdict, is left out. Raises
    StoreError.
    """
    model, release = intent.model, intent.release
    approvals, watches = Approvals(target, model, release), WatchRecords(target, model)
    current = target.current(model)[0] if now else None
    given = None if current is None else _readable(traffic(target, model).read)
    watching = _readable(watches.last) if now else None
    result = target.result(model, release)
    return ReleaseReport(
        target=target.name,
        intent=intent,
        result=result,
        gates=tuple(GateRecords(target, model, release).all()),
        before=_before(target, intent, result),
        why=_why(target, intent, result),
        made_of=tuple(_made_of(target.bucket, intent)),
        wave=_readable(wave_outcome(target, model, release).read) if now else None,
        request=_readable(approvals.request),
        approval=_readable(approvals.recorded),
        shift=_readable(shift(target, model, release).read),
        watch=_readable(lambda: watches.outcome(release)),
        current=current,
        traffic=None if given is None or current is None else given[0].within(current),
        watching=watching if watching is not None and watching.release == release and not watching.over else None,
    )


def _readable(read: Callable[[], _T]) -> _T | None:
    """What a record says; None if there is none, or it cannot be read."""
    try:
        return read()
    except _UNREADABLE:
        return None


def _dumped(record: Record | None) -> dict[str, JsonValue] | None:
    return None if record is None else record.model_dump(mode="json")


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
