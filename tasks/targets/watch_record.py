"""The watch over a release after its promotion: that it is on, and what came of it.

targets/TARGET/MODEL/watching.json   the watch that was begun last; written before the public name moves
targets/TARGET/MODEL/N/watch.json    what came of the watch over release N, created once
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, JsonValue

from tasks.store.cell import Cell, WriteOnce
from tasks.store.record import Record
from tasks.targets.gate_record import Comparison
from tasks.targets.observed import NodeObserved, Observed
from tasks.targets.target import Target

WatchState = Literal["healthy", "undecided", "overtaken", "returned", "failing"]


def _now() -> datetime:
    return datetime.now(UTC)


class Watching(Record):
    """A watch that was begun. It goes on until it has an outcome, or the time that it lasts is over.

    How long it has gone on is the age of this record, by the store's clock.
    """

    release: int = 0
    """0: no release of the model was ever watched."""
    previous: int | None = None
    """What the public name is given back to."""
    asked: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """The section `watch` of the model's file."""
    before: Observed = Observed()
    """What clients had seen of the previous release."""
    nodes: dict[str, NodeObserved] = Field(default_factory=dict[str, NodeObserved])
    """What each node had counted of the release when it was promoted: what came before that, is no client's."""
    over: bool = False
    """Whether what its outcome says was done. From then on, who gives the release the name knows better."""
    flow_run: str = ""


class WatchOutcome(Record):
    """What came of the watch over one release.

    `healthy`: shown to fail no more than is allowed, and nothing else is shown to be worse. `undecided`: nothing is
    shown. `overtaken`: the public name was moved meanwhile. `returned`: the previous release has the name again.
    `failing`: something is worse, and there is no release to go back to.
    """

    release: int
    previous: int | None = None
    state: WatchState
    reason: str = ""
    comparisons: tuple[Comparison, ...] = ()
    observed: Observed = Observed()
    """What clients saw of it."""
    probes: int = 0
    """Test prompts that were sent to it."""
    seconds: float = 0
    """Since the promotion."""
    asked: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    flow_run: str = ""
    created: datetime = Field(default_factory=_now)


@dataclass(frozen=True)
class WatchRecords:
    """The records of the watches over one model's releases."""

    target: Target
    model: str

    @property
    def _watching(self) -> Cell[Watching]:
        return Cell(self.target.bucket, f"{self.target.prefix}{self.model}/watching.json", Watching())

    def begin(self, watching: Watching) -> Watching:
        """Note that a watch begins, in the place of the one before."""
        return self._watching.move(lambda _: watching)

    def last(self) -> Watching:
        """The watch that was begun last."""
        return self._watching.read()[0]

    def age(self) -> float:
        """For how many seconds it has gone on, by the store's clock; 0 if there is none."""
        return self._watching.aged()[1]

    def _outcome(self, release: int) -> WriteOnce[WatchOutcome]:
        key = f"{self.target.prefix}{self.model}/{release}/watch.json"
        return WriteOnce(self.target.bucket, key, WatchOutcome)

    def outcome(self, release: int) -> WatchOutcome | None:
        """What came of the watch over a release; None while it goes on, and if there was none."""
        return self._outcome(release).read()

    def concluded(self) -> set[int]:
        """The releases whose watch has an outcome: one listing."""
        start = f"{self.target.prefix}{self.model}/"
        names = (entry.key.removeprefix(start).split("/") for entry in self.target.bucket.list(start))
        return {int(parts[0]) for parts in names if len(parts) == 2 and parts[1] == "watch.json"}

    def conclude(self, outcome: WatchOutcome) -> WatchOutcome:
        """Write the outcome once; returns the one that counts, which is the first."""
        return self._outcome(outcome.release).create(outcome)

    def end(self, release: int) -> None:
        """Note that what the outcome of the watch over `release` says was done."""

        def change(watching: Watching) -> Watching:
            return watching.model_copy(update={"over": True}) if watching.release == release else watching

        self._watching.move(change)
