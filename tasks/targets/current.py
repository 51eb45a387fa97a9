"""The wanted state of one model on a target: which release is public, and which ones its nodes are to load.

targets/TARGET/MODEL/current.json    moved with `If-Match`
"""

from __future__ import annotations

from typing import Literal

from tasks.store.record import Record
from tasks.targets.move import Move
from tasks.targets.release import Result
from tasks.targets.retirement import Retirement

ReleaseState = Literal["live", "previous", "candidate", "abandoned", "passed", "refused", "undecided"]


class Current(Record):
    """The wanted state of one model. Nodes load `public`, `previous` and `candidates`, and no other release.

    With `alone`, memory does not hold two releases, and nodes load one: the newest candidate, else the public one.
    While that candidate is loaded and tested, the public name does not answer; a promotion ends all candidates then.
    """

    public: int | None = None
    previous: int | None = None
    candidates: tuple[int, ...] = ()
    alone: bool = False
    moves: tuple[Move, ...] = ()
    """The latest moves of the public name, the newest last: those that may have no record of their own yet."""
    retired: Retirement | None = None
    """Set from the write in which the model left the target until a release is public there again."""

    @property
    def beside_candidates(self) -> int | None:
        """The public release, if nodes hold it beside a candidate. None if none is public, or they hold one alone."""
        return None if self.alone else self.public

    @property
    def loaded(self) -> tuple[int, ...]:
        """The releases that nodes are to load, each once, the most important first."""
        if self.alone and self.candidates:
            return (max(self.candidates),)
        wanted = [self.public] if self.alone else [self.public, self.previous, *self.candidates]
        return tuple(dict.fromkeys(n for n in wanted if n is not None))

    def state_of(self, release: int, result: Result | None) -> ReleaseState:
        """What became of a release with this `result`. Without one it is a candidate, or abandoned: its run ended."""
        if release == self.public:
            return "live"
        if result is None:
            return "candidate" if release in self.candidates else "abandoned"
        return "previous" if release == self.previous else result.state

    def with_candidate(self, release: int, *, alone: bool = False) -> Current:
        candidates = self.candidates if release in self.candidates else (*self.candidates, release)
        return self.model_copy(update={"candidates": candidates, "alone": alone})

    def without_candidates(self, *releases: int) -> Current:
        return self.model_copy(update={"candidates": tuple(n for n in self.candidates if n not in releases)})

    def promoted(self, release: int) -> Current:
        there = {"public": release, "previous": self.public, "retired": None}
        moved = self if release == self.public else self.model_copy(update=there)
        return moved.without_candidates(*(self.candidates if self.alone else (release,)))

    def without_releases(self, retirement: Retirement) -> Current:
        """With nothing to load, and no public name. If the model is retired already, that retirement stays."""
        nothing = {"public": None, "previous": None, "candidates": (), "alone": False}
        return self.model_copy(update={**nothing, "retired": self.retired or retirement})

    def with_move(self, move: Move, recorded: int) -> Current:
        """With one more move, whose number is given here. Those up to the number `recorded` have a record."""
        waiting = tuple(each for each in self.moves if each.number > recorded)
        number = 1 + max(recorded, *(each.number for each in waiting), 0)
        return self.model_copy(update={"moves": (*waiting, move.model_copy(update={"number": number}))})
