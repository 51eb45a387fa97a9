"""What clients saw of one release since a moment, over all live nodes of a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tasks.targets.node_report import NodeReport
from tasks.targets.observed import NodeObserved, Observed

Look: TypeAlias = Mapping[str, NodeObserved]
"""What each live node had counted at one moment, by its name."""


def look(reports: Iterable[NodeReport]) -> Look:
    """One look at a target: what its live nodes say, such as `target.nodes()`."""
    return {report.node: report.observed for report in reports if report.observed.epoch}


def total(look: Look, model: str, release: int) -> Observed:
    """Everything that the nodes of a look have counted of a release since they were started."""
    return sum((node.of(model, release) for node in look.values()), Observed())


@dataclass
class Tally:
    """Counts one release from the look `first` on, by every look that `add` is given.

    A node that was started again counts from zero, and all that it has came after the last look at it. Of a node that
    was not there before, nothing is known to have come since, so it counts from the next look on.
    """

    model: str
    release: int
    first: Look
    observed: Observed = field(default_factory=Observed)
    """What has come since the first look."""
    _last: dict[str, tuple[str, Observed]] = field(init=False)

    def __post_init__(self) -> None:
        self._last = {node: self._of(seen) for node, seen in self.first.items()}

    def add(self, now: Look) -> Observed:
        """Take a look, and return what has come since the last one."""
        gained = Observed()
        for node, seen in now.items():
            epoch, counted = self._of(seen)
            if node in self._last:
                known, before = self._last[node]
                gained += counted.since(before) if epoch == known else counted
            self._last[node] = epoch, counted
        self.observed += gained
        return gained

    def _of(self, seen: NodeObserved) -> tuple[str, Observed]:
        return seen.epoch, seen.of(self.model, self.release)
