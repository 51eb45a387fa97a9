"""Where the moves of a public name lie, and the retirements of its model, one record each.

The wanted state carries a move, or a retirement, from the write in which the name moves until its record is known to
lie in the store. So a crash between both loses nothing: whoever moves the name next records it, and readers look at
both places.
"""

from __future__ import annotations

from dataclasses import dataclass

from tasks.store.cell import WriteOnce
from tasks.targets.current import Current
from tasks.targets.move import Move
from tasks.targets.retirement import Retirement
from tasks.targets.target import Target


@dataclass(frozen=True)
class MoveRecords:
    """The moves of one public name."""

    target: Target
    model: str

    @property
    def _folder(self) -> str:
        return f"{self.target.prefix}{self.model}/moves/"

    @property
    def _retired(self) -> str:
        return f"{self.target.prefix}{self.model}/retirements/"

    def _of(self, number: int) -> WriteOnce[Move]:
        return WriteOnce(self.target.bucket, f"{self._folder}{number:06}.json", Move)

    def read(self, number: int) -> Move | None:
        """The record of a move; None if there is none."""
        return self._of(number).read()

    def keep(self, current: Current) -> int:
        """Record the moves that the wanted state carries, and the retirement if the model is retired.

        Returns the number of the last move, 0 before the first.
        """
        if current.retired is not None:
            key = f"{self._retired}{current.retired.number:06}.json"
            WriteOnce(self.target.bucket, key, Retirement).create(current.retired)
        for move in current.moves:
            self._of(move.number).create(move)
        if current.moves:
            return current.moves[-1].number
        # An earlier version, which knows no moves, may have written the wanted state since.
        return self._last(self._folder)

    def retirements(self) -> int:
        """The number of the last retirement that has a record, 0 before the first."""
        return self._last(self._retired)

    def _last(self, folder: str) -> int:
        names = (entry.key.removeprefix(folder) for entry in self.target.bucket.list(folder))
        return max((int(name.removesuffix(".json")) for name in names if name[:-5].isdecimal()), default=0)
