"""The history of a model on a target: who did what and when, from the records of releases, moves and retirements.

The order is that of the store's clock, which one listing shows. Moments are shown as whoever wrote a record had them:
clocks of two machines are not compared. A further kind of record is one entry in `_TELLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from pydantic import JsonValue

from infra.errors import UsageError
from tasks.store.inventory import in_parallel
from tasks.targets.approval import Approval
from tasks.targets.move import Move
from tasks.targets.release import Intent, Result
from tasks.targets.retirement import Retirement
from tasks.targets.target import Target
from tasks.targets.traffic import Shift
from tasks.targets.watch_record import WatchOutcome
from tasks.targets.waves import WaveOutcome

NEWEST = 20
"""Events that are told if nobody asks for more."""
_RUN_DIGITS = 8
HEADS = f"{'WHEN':19}  {'WHAT':11}  RELEASE, BY WHOM, WHY"
"""Above the first event."""


@dataclass(frozen=True)
class Event:
    """One thing that happened to a release. `by` is `user@host`, `run` the flow run, as far as a record names them.

    `release` is None where a model was retired of which none was public.
    """

    moment: datetime
    what: str
    release: int | None
    instead_of: int | None = None
    by: str = ""
    run: str = ""
    reason: str = ""

    def document(self) -> dict[str, JsonValue]:
        return {**asdict(self), "moment": self.moment.isoformat()}


@dataclass(frozen=True)
class History:
    """The newest events first. `earlier`: how many more records there are."""

    model: str
    target: str
    events: tuple[Event, ...]
    earlier: int

    def document(self) -> dict[str, JsonValue]:
        """What `enginehouse history --json` prints."""
        events: list[JsonValue] = [event.document() for event in self.events]
        return {"model": self.model, "target": self.target, "earlier": self.earlier, "events": events}


@dataclass(frozen=True)
class _Entry:
    """One record of a listing, or what only the wanted state has yet. `age` in seconds."""

    name: str
    age: float
    carried: Move | Retirement | None = None


def history(target: Target, model: str, limit: int = NEWEST) -> History:
    """The newest `limit` events. One listing, and no record of an older one is read.

    Raises UsageError, code `release-missing`, if the model was never released on the target.
    """
    entries = sorted(_entries(target, model), key=lambda entry: entry.age)
    if not entries:
        raise UsageError(
            f"{model} was never released on target '{target.name}'",
            hint=f"enginehouse rebuild {model}",
            code="release-missing",
        )
    shown = entries[:limit]
    read = in_parallel(lambda entry: _event(target, model, entry), shown)
    known = [(entry, event) for entry, event in zip(shown, read, strict=True) if event is not None]
    # Stores tell whole seconds. Within one, the moments that the records name decide.
    known.sort(key=lambda pair: (round(pair[0].age), -pair[1].moment.timestamp()))
    return History(model, target.name, tuple(event for _, event in known), len(entries) - len(shown))


def history_lines(found: History) -> Iterator[str]:
    """The same for people."""
    for event in found.events:
        instead = "" if event.instead_of is None else f" instead of {event.instead_of}"
        who = ", ".join(filter(None, (event.by, event.run and f"run {event.run[:_RUN_DIGITS]}")))
        reason = " ".join(event.reason.split())
        release = "no release" if event.release is None else f"release {event.release}"
        line = f"{event.moment:%Y-%m-%d %H:%M:%S}  {event.what:11}  {release}{instead}  {who}  {reason}"
        yield line.rstrip()
    if found.earlier:
        yield f"{found.earlier} earlier records; --limit shows more"


def _entries(target: Target, model: str) -> Iterator[_Entry]:
    start = f"{target.prefix}{model}/"
    listed = {entry.key.removeprefix(start): entry.age for entry in target.bucket.list(start)}
    moves: list[_Entry] = []
    for name, age in listed.items():
        folder, _, record = name.partition("/")
        if folder == "moves":
            moves.append(_Entry(name, age))
        elif folder == "retirements" or (folder.isdecimal() and record in _TELLS):
            yield _Entry(name, age)
    current, _ = target.current(model)
    if current.retired is not None and (name := f"retirements/{current.retired.number:06}.json") not in listed:
        yield _Entry(name, listed.get("current.json", 0.0), current.retired)
    waiting = ((f"moves/{move.number:06}.json", move) for move in current.moves)
    age = listed.get("current.json", 0.0)
    moves += [_Entry(name, age, move) for name, move in waiting if name not in listed]
    # A record that was written late, after a crash, does not come after the moves that followed it.
    least = 0.0
    for entry in sorted(moves, key=lambda entry: entry.name, reverse=True):
        least = max(least, entry.age)
        yield _Entry(entry.name, least, entry.carried)


def _event(target: Target, model: str, entry: _Entry) -> Event | None:
    if isinstance(entry.carried, Move):
        return _of_move(entry.carried)
    if entry.carried is not None:
        return _of_retirement(entry.carried)
    stored = target.bucket.get(f"{target.prefix}{model}/{entry.name}")
    if stored is None:
        return None
    folder, _, record = entry.name.partition("/")
    tell = _TELLS[record if folder.isdecimal() else folder]
    return tell(stored.body)


def _of_move(move: Move) -> Event:
    return Event(move.created, move.kind, move.release, move.instead_of, move.by, move.flow_run, move.reason)


def _of_retirement(found: Retirement) -> Event:
    return Event(found.created, "retired", found.release, by=found.by, reason=found.reason)


def _of_intent(body: bytes) -> Event:
    intent = Intent.model_validate_json(body)
    former = f", as {intent.former} before it was renamed" if intent.former else ""
    return Event(intent.created, "made", intent.release, run=intent.flow_run, reason=f"from {intent.source}{former}")


def _of_result(body: bytes) -> Event:
    result = Result.model_validate_json(body)
    return Event(result.created, result.state, result.release, reason=result.reason)


def _of_approval(body: bytes) -> Event:
    approval = Approval.model_validate_json(body)
    return Event(
        approval.created, approval.state, approval.release, by=approval.by, run=approval.flow_run, reason=approval.note
    )


def _of_shift(body: bytes) -> Event:
    shift = Shift.model_validate_json(body)
    return Event(
        shift.created, shift.state, shift.release, reason=f"{shift.strategy}: {shift.reason}".removesuffix(": ")
    )


def _of_watch(body: bytes) -> Event:
    outcome = WatchOutcome.model_validate_json(body)
    return Event(
        outcome.created, outcome.state, outcome.release, run=outcome.flow_run, reason=f"watch: {outcome.reason}"
    )


def _of_wave(body: bytes) -> Event:
    outcome = WaveOutcome.model_validate_json(body)
    reason = f"{outcome}: {outcome.reason}".removesuffix(": ")
    return Event(outcome.created, outcome.state, outcome.release, run=outcome.flow_run, reason=reason)


_TELLS: Mapping[str, Callable[[bytes], Event]] = {
    "intent.json": _of_intent,
    "result.json": _of_result,
    "approval.json": _of_approval,
    "shift.json": _of_shift,
    "watch.json": _of_watch,
    "wave.json": _of_wave,
    "moves": lambda body: _of_move(Move.model_validate_json(body)),
    "retirements": lambda body: _of_retirement(Retirement.model_validate_json(body)),
}
"""By the name of the record below its release, or of a folder beside the releases."""
