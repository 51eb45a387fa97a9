"""A rollout to several targets, wave by wave.

targets/FIRST/MODEL/waves/NUMBER.json   each rollout, by its first target; moved with `If-Match`
targets/TARGET/MODEL/N/wave.json        what came of the wave that release N was in, created once
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, JsonValue

from tasks.store.cell import Cell, WriteOnce, attempts, contended
from tasks.store.names import Segment
from tasks.store.record import Record
from tasks.targets.target import Target

WavesState = Literal["going", "passed", "refused", "returning", "returned", "overtaken"]


class Moved(Record):
    """The rollout gives the public name on a target to `release`, which `previous` had until then."""

    target: Segment
    release: int
    previous: int | None = None
    """None if no release was public."""


class Waves(Record):
    """One rollout.

    `going`: not all waves have passed, whether a run is at work or not. `refused`: one was, and it has stopped.
    `returning`: one was, and what the rollout has moved gets its previous release again; `returned`: that is done.
    `overtaken`: newer weights came, or somebody else moved the name where the rollout had been.
    """

    repository: str
    """Reference of the repository that is rolled out."""
    waves: tuple[tuple[Segment, ...], ...]
    """The targets of each."""
    all_back: bool = False
    """Whether a refusal gives the previous release back on all targets."""
    state: WavesState = "going"
    passed: int = Field(default=0, ge=0)
    """How many waves have passed."""
    moved: tuple[Moved, ...] = ()
    """In the order in which they are moved. Written before the name moves."""
    reason: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Of the rebuild that rolls it out."""
    flow_run: str = ""
    """The run that went on with it last."""

    def is_same(self, other: Waves) -> bool:
        """Whether both bring the same to the same targets, so that one goes on with the other."""
        return (self.repository, self.waves, self.all_back) == (other.repository, other.waves, other.all_back)

    def with_moved(self, moved: Moved) -> Waves:
        """With one more target. Where it has moved the name twice, it goes back to what was public before both."""
        earlier = next((each for each in self.moved if each.target == moved.target), None)
        if earlier is not None and moved.release == earlier.release:
            return self
        if earlier is not None and moved.previous == earlier.release:
            moved = moved.model_copy(update={"previous": earlier.previous})
        others = tuple(each for each in self.moved if each.target != moved.target)
        return self.model_copy(update={"moved": (*others, moved)})


class WaveOutcome(Record):
    """What came of wave number `wave` of `of`. How long it has soaked is the age of this record."""

    release: int
    wave: int = Field(ge=1)
    of: int = Field(ge=1)
    targets: tuple[Segment, ...] = ()
    """All of this wave."""
    state: Literal["passed", "refused"]
    reason: str = ""
    flow_run: str = ""
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def __str__(self) -> str:
        return f"wave {self.wave} of {self.of} ({', '.join(self.targets)})"


@dataclass(frozen=True)
class WavesRecords:
    """The rollouts of one model that begin on target `first`."""

    first: Target
    model: str

    @property
    def _folder(self) -> str:
        return f"{self.first.prefix}{self.model}/waves/"

    def _key(self, number: int) -> str:
        return f"{self._folder}{number:06}.json"

    def read(self, number: int) -> Waves | None:
        """One rollout; None if there is none of that number."""
        return WriteOnce(self.first.bucket, self._key(number), Waves).read()

    def last(self) -> tuple[int, Waves] | None:
        """The newest one, and its number; None if there was none."""
        names = (entry.key.removeprefix(self._folder) for entry in self.first.bucket.list(self._folder))
        number = max((int(name[:-5]) for name in names if name[:-5].isdecimal()), default=0)
        known = self.read(number) if number else None
        return None if known is None else (number, known)

    def begin(self, waves: Waves) -> int:
        """Write the record of a rollout that begins. Returns its number."""
        last = self.last()
        free = 1 + (0 if last is None else last[0])
        for taken in attempts():
            if WriteOnce(self.first.bucket, self._key(free + taken), Waves).create(waves) == waves:
                return free + taken
        raise contended(self._folder)

    def cell(self, number: int, default: Waves) -> Cell[Waves]:
        """The record of a rollout that was begun; `default` if somebody has removed it."""
        return Cell(self.first.bucket, self._key(number), default)


def wave_outcome(target: Target, model: str, release: int) -> WriteOnce[WaveOutcome]:
    """The record of one release."""
    return WriteOnce(target.bucket, f"{target.prefix}{model}/{release}/wave.json", WaveOutcome)
