"""A rollout to several targets, wave by wave: what stops it, what it gives back, and what a run that died has left.

Its records say how far it has come, so a run that comes again goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from infra.errors import EnginehouseError, TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.models.rollout import Wave
from tasks.steps.promote import roll_back
from tasks.targets.approvals import open_requests
from tasks.targets.target import Target, targets
from tasks.targets.waves import Moved, WaveOutcome, Waves, WavesRecords, WavesState, wave_outcome


def moved_away(bucket: Bucket, model: str, live: Mapping[str, int]) -> str:
    """Which target answers with another release than `live` says, in words; empty if none does."""
    for name, release in live.items():
        public = Target(bucket, name).current(model)[0].public
        if public != release:
            answers = "no release" if public is None else f"release {public}"
            return f"{answers} is public on '{name}', where this rollout had release {release}"
    return ""


def require_unmoved(bucket: Bucket, model: str, live: Mapping[str, int]) -> None:
    """Raises EnginehouseError `rollout-overtaken` if the public name was moved where this rollout has been already.

    `live` has the release of each of these targets. Newer weights came, or somebody rolled the release back: neither is
    to be followed by the same release on the next target.
    """
    if moved := moved_away(bucket, model, live):
        raise EnginehouseError(
            f"{model} is not rolled out any further: {moved}",
            hint=f"`enginehouse history {model} --target NAME` tells who moved it; "
            f"`enginehouse rebuild {model}` begins anew, if its release is still wanted",
            code="rollout-overtaken",
        )


@dataclass
class InWaves:
    """One rollout in waves. It has a record from the moment in which it changes something."""

    bucket: Bucket
    model: str
    waves: tuple[Wave, ...]
    wanted: Waves
    """Its record as it is when it begins."""
    flow_run: str
    _number: int | None = field(default=None, init=False)

    @property
    def _records(self) -> WavesRecords:
        return WavesRecords(Target(self.bucket, self.waves[0].targets[0]), self.model)

    def look_back(self, *, afresh: bool) -> None:
        """Go on with the last rollout if it brings the same and was left half way, but for `afresh`.

        What the last one was about to give back is given back first.
        """
        last = self._records.last()
        if last is None:
            return
        number, known = last
        if known.state == "returning":
            give_back(self._records, number, self.flow_run)
        elif known.state == "going" and known.is_same(self.wanted) and not afresh:
            self._number = number
            self._change(lambda known: known.model_copy(update={"flow_run": self.flow_run}))

    def note(self, target: str, release: int) -> None:
        """Note that the name on a target is about to move to `release`, and from which."""
        public = Target(self.bucket, target).current(self.model)[0].public
        self._change(lambda known: known.with_moved(Moved(target=target, release=release, previous=public)))

    def passed(self, wave: int, live: Mapping[str, int]) -> None:
        """Note that a wave has passed. `live` has the release of each target of the rollout so far.

        As long as nothing was moved, there is nothing to note: the targets had the release before.
        """
        if self._number is None:
            return
        for target in self._named(wave):
            self._conclude(wave, target, live[target], "passed")
        state = "passed" if wave == len(self.waves) else "going"
        self._change(lambda known: known.model_copy(update={"passed": max(wave, known.passed), "state": state}))

    def soak_left(self, wave: int, live: Mapping[str, int]) -> float:
        """For how many seconds more the wave has to soak. It has soaked as long as its youngest record is old."""
        keys = [wave_outcome(Target(self.bucket, name), self.model, live[name]).key for name in self._named(wave)]
        ages = [stored.age for key in keys if (stored := self.bucket.get(key)) is not None]
        return max(0.0, self.waves[wave - 1].soak - min(ages)) if ages else 0.0

    def overtaken(self, reason: str) -> None:
        """Note that the rollout ends because it was overtaken, if it has changed anything."""
        if self._number is not None:
            self._ends("overtaken", reason)

    def refused(self, wave: int, target: str, release: int | None, reason: str) -> None:
        """Note that a target has refused `release`, None if its number is not known. `give_back` does what follows."""
        if (number := release or _refused_last(Target(self.bucket, target), self.model)) is not None:
            self._conclude(wave, target, number, "refused", reason)
        self._ends("returning" if self.wanted.all_back else "refused", reason)

    def give_back(self) -> list[str]:
        """Give back what the refused rollout has moved, and say what came of it, a line for each target."""
        return [] if self._number is None else give_back(self._records, self._number, self.flow_run)

    def _ends(self, state: WavesState, reason: str) -> None:
        self._change(lambda known: known.model_copy(update={"state": state, "reason": reason}))

    def _named(self, wave: int) -> tuple[str, ...]:
        return self.waves[wave - 1].targets

    def _change(self, change: Callable[[Waves], Waves]) -> None:
        if self._number is None:
            self._number = self._records.begin(self.wanted)
        self._records.cell(self._number, self.wanted).move(change)

    def _conclude(
        self, wave: int, target: str, release: int, state: Literal["passed", "refused"], reason: str = ""
    ) -> None:
        wave_outcome(Target(self.bucket, target), self.model, release).create(
            WaveOutcome(
                release=release,
                wave=wave,
                of=len(self.waves),
                targets=self._named(wave),
                state=state,
                reason=reason,
                flow_run=self.flow_run,
            )
        )


def _refused_last(target: Target, model: str) -> int | None:
    """The newest release, if it was refused: a candidate that its nodes could not load."""
    newest = max(target.releases(model), default=None)
    result = None if newest is None else target.result(model, newest)
    return None if result is None or result.state != "refused" else newest


def give_back(records: WavesRecords, number: int, flow_run: str) -> list[str]:
    """Give the previous release back on each target that a refused rollout has moved, the last one first.

    Does nothing unless its record says that this is to be done. Where somebody else has moved the name meanwhile, it
    stays. Returns a line for each other target.
    """
    known = records.read(number)
    if known is None or known.state != "returning":
        return []
    bucket = records.first.bucket
    lines = [_given_back(bucket, records.model, moved, known.reason, flow_run) for moved in reversed(known.moved)]
    records.cell(number, known).move(lambda known: known.model_copy(update={"state": "returned"}))
    return [line for line in lines if line]


def _given_back(bucket: Bucket, model: str, moved: Moved, reason: str, flow_run: str) -> str:
    target, what = Target(bucket, moved.target), f"release {moved.release} on '{moved.target}'"
    if target.current(model)[0].public != moved.release:
        return ""
    if moved.previous is None:
        return f"{what} stays: none was public before"
    try:
        roll_back(
            target,
            model,
            to=moved.previous,
            instead_of=moved.release,
            flow_run=flow_run,
            reason=f"all back: {reason}",
        )
    except UsageError as error:
        return "" if error.code == "release-moved" else f"{what} stays: {error.message}"
    except TritonError as error:  # the name has moved, and nodes follow when they can
        return f"release {moved.previous} is wanted on '{moved.target}' again, and {error.message}"
    return f"release {moved.previous} is public on '{moved.target}' again"


@dataclass(frozen=True)
class Unfinished:
    """A rollout in waves that has not ended."""

    records: WavesRecords
    number: int
    waves: Waves

    @property
    def model(self) -> str:
        return self.records.model

    def give_back(self, flow_run: str) -> list[str]:
        """See `give_back`."""
        return give_back(self.records, self.number, flow_run)

    @property
    def key(self) -> str:
        """Equal until one more wave has passed: nobody goes on twice from one place by himself."""
        return f"waves:{self.records.first.name}:{self.model}:{self.number}:{self.waves.passed}"


def unfinished(bucket: Bucket) -> Iterator[Unfinished | str]:
    """The last rollout in waves of each model and first target, where it has not ended and waits for nobody.

    A record that cannot be read costs its own model a line. Raises StoreError.
    """
    for target in targets(bucket):
        for model in target.wanted():
            try:
                records = WavesRecords(target, model)
                last = records.last()
                if last is not None and last[1].state in ("going", "returning") and not _waits(bucket, model, last[1]):
                    yield Unfinished(records, *last)
            except (EnginehouseError, ValidationError) as error:
                yield f"the waves of {model} from '{target.name}' on cannot be looked at: {error}"


def _waits(bucket: Bucket, model: str, waves: Waves) -> bool:
    """Whether a person has to decide on a candidate of the rollout."""
    views = (Target(bucket, name).view(model) for wave in waves.waves for name in wave)
    return any(
        bool(view.undecided) or bool(open_requests(Target(bucket, view.target), model, view.current.candidates))
        for view in views
    )
