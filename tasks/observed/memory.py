"""Whether the memory of a release keeps growing: a bet, looked at all the time, against "it is as it was".

A release that is warmed up takes memory for requests and gives it back. What it holds at the least, in one stretch of
time after the other, then comes in no order: the newest is the highest of n with a probability of 1/n. One that leaks
has a new highest each time. What may grow is a line that the model's file allows, and is taken off first; so the bet is
against "it grows by no more than that". It pays what its rank among the stretches so far is worth, an e-value at any
moment, so its level holds however often it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.targets.gate_record import Comparison
from tasks.targets.node_report import REPORT_SECONDS, NodeReport

MEASURE = "memory of its processes"
LEAST_BYTES = 64 << 20
"""Growth of so much, in the time of a watch, is none: small processes fill their caches too."""
_STRETCHES = 40
"""Of the time of a watch, or fewer if it is too short for two reports in each. Eight that grow in a row are enough at a
level of 0.006."""
_WARM_UP = 0.1
"""Of the time of a watch: what comes so early is left out, since first requests fill caches that stay."""
_MIB = 1 << 20


class GrowthProcess:
    """Values that come one after the other, looked at after each.

    Where they come in any order with the same probability, as equal draws do, the rank of each among those so far,
    from the highest, is even on 1 … n and independent of the ones before (Rényi, 1962). n / (rank · H_n), of which H_n
    is the n-th harmonic number, is then 1 on average, so the product ever grows to 1/alpha with a probability of alpha
    at most (Ville). Where values tie, or tend to fall, ranks are later and the bet is worth less.
    """

    def __init__(self) -> None:
        self._values: list[float] = []
        self._worth = self._most = self._harmonic = 0.0

    def add(self, value: float) -> None:
        self._values.append(value)
        count = len(self._values)
        self._harmonic += 1 / count
        rank = sum(each >= value for each in self._values)
        self._worth += math.log(count / (rank * self._harmonic))
        self._most = max(self._most, self._worth)

    @property
    def p_worse(self) -> float:
        return math.exp(-self._most)


class _Node:
    """One node: the least that it held of the release in each stretch."""

    def __init__(self, share: float, lasts: float, now: float) -> None:
        self._share, self._lasts, self._began, self._stretch_began = share, lasts, now, now
        self._least: int | None = None
        self._bet = GrowthProcess()
        self.first = self.last = self.allowed = self.stretches = 0

    def see(self, held: int, now: float) -> None:
        if self._least is not None and now - self._stretch_began >= stretch_seconds(self._lasts):
            self._end(self._least, self._stretch_began - self._began)
            self._least, self._stretch_began = None, now
        self._least = held if self._least is None else min(held, self._least)

    def _end(self, least: int, at: float) -> None:
        if at < _WARM_UP * self._lasts:
            return
        if not self.stretches:
            self.first = least
            self.allowed = max(LEAST_BYTES, int(self._share * least))
        self._bet.add(least - self.allowed * at / self._lasts)
        self.stretches += 1
        self.last = least

    @property
    def p_worse(self) -> float:
        return self._bet.p_worse


def stretch_seconds(lasts: float) -> float:
    """Of a watch of `lasts` seconds: a node has reported twice in each, so each has a report of its own."""
    return max(lasts / _STRETCHES, 2 * REPORT_SECONDS)


class Memory:
    """What the nodes hold of `release` during a watch of `lasts` seconds, in which it may grow by `share`."""

    def __init__(self, model: str, release: int, share: float, lasts: float) -> None:
        self._model, self._release, self._share, self._lasts = model, release, share, lasts
        self._nodes: dict[str, _Node] = {}

    def look(self, nodes: Sequence[NodeReport], now: float) -> None:
        """Take what nodes report at `now`, in seconds that only grow. A node that does not know it is left out."""
        for node in nodes:
            known = node.models.get(self._model)
            held = None if known is None else known.releases.get(self._release)
            if held is not None and held.memory_bytes:
                new = _Node(self._share, self._lasts, now)
                self._nodes.setdefault(node.node, new).see(held.memory_bytes, now)

    def comparisons(self) -> tuple[Comparison, ...]:
        """That of the node where it grows most surely, beside what it began with there; none before two stretches."""
        known = [node for node in self._nodes.values() if node.stretches > 1]
        if not known:
            return ()
        worst = min(known, key=lambda node: node.p_worse)
        return (
            Comparison(
                measure=MEASURE,
                method=f"anytime-valid, the least of each {stretch_seconds(self._lasts):g} s",
                unit="MiB",
                candidate=worst.last / _MIB,
                other=worst.first / _MIB,
                difference=(worst.first - worst.last) / _MIB,
                lower=None,
                upper=None,
                margin=worst.allowed / _MIB,
                # Each node has a bet of its own, and any of them may give the release back.
                p_worse=min(1.0, len(self._nodes) * worst.p_worse),
                p_fine=1.0,
                samples=worst.stretches,
            ),
        )
