"""What clients see of a canary, and at the same time of what is live: looked at for as long as both get requests."""

from __future__ import annotations

from tasks.gates.wording import value
from tasks.models.watch import WatchSpec
from tasks.observed.evidence import Margins, SideBySide, measures
from tasks.observed.tally import Tally, look, total
from tasks.targets.gate_record import Comparison
from tasks.targets.target import Target


class Beside:
    """Counts both from the first look on: what came before that may be of a smaller share, or of other clients.

    What may be lost is that of the section `watch` of the model's file, or what such a section says by itself.
    """

    def __init__(self, target: Target, model: str, candidate: int, live: int, asked: WatchSpec | None = None) -> None:
        asked = asked or WatchSpec()
        first = look(target.nodes())
        measured = measures(total(first, model, live), Margins(asked.errors, asked.first_token, asked.gap))
        self._target = target
        self._level = asked.alpha / len(measured)
        self._both = SideBySide(measured)
        self._candidate, self._live = (Tally(model, release, first) for release in (candidate, live))

    def worse(self) -> str:
        """What clients of the candidate are shown to fare worse in, by all looks until now; empty if in nothing."""
        now = look(self._target.nodes())
        self._both.add(self._candidate.add(now), self._live.add(now))
        return "; ".join(_said(each) for each in self._both.comparisons() if each.p_worse <= self._level)


def _said(each: Comparison) -> str:
    ours, theirs = (value(share, each.unit) for share in (each.candidate, each.other))
    return f"{each.measure}: {ours} of {each.samples} requests, against {theirs} of those to the live release"
