"""What clients saw of a release on one node, in few numbers: how its requests ended, and how long they took.

The numbers only grow, as long as the node's `epoch` stays. A node that is started again counts from zero, under another
one.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from tasks.store.record import Record

Counts = dict[str, int]


class Observed(Record):
    """Requests of clients to one release. Those by which Enginehouse asks for itself are not among them."""

    ended: Counts = Field(default_factory=Counts)
    """How many requests ended in which way: `stop`, `length` and `stop_words` are answers, `cancelled` is a client that
    left, and the others are errors, by their code."""
    first: Counts = Field(default_factory=Counts)
    """How many first tokens came within so many seconds: by the upper bound of their bucket, each in one bucket."""
    gap: Counts = Field(default_factory=Counts)
    """The same of the time between two tokens, as the mean of an answer."""

    def __bool__(self) -> bool:
        return any((self.ended, self.first, self.gap))

    def __add__(self, other: Observed) -> Observed:
        return Observed(
            ended=_sum(self.ended, other.ended), first=_sum(self.first, other.first), gap=_sum(self.gap, other.gap)
        )

    def since(self, before: Observed) -> Observed:
        """What has come since the same counters showed `before`; all of it if one has fallen: they began again."""
        pairs = ((self.ended, before.ended), (self.first, before.first), (self.gap, before.gap))
        if any(now.get(name, 0) < number for now, then in pairs for name, number in then.items()):
            return self
        ended, first, gap = (_difference(now, then) for now, then in pairs)
        return Observed(ended=ended, first=first, gap=gap)


class NodeObserved(Record):
    """Everything that a node has counted. A release that nobody asked is not in it."""

    epoch: str = ""
    """Another one after each start of the node. Empty: the node counts nothing."""
    models: dict[str, dict[int, Observed]] = Field(default_factory=dict[str, dict[int, Observed]])

    def of(self, model: str, release: int) -> Observed:
        return self.models.get(model, {}).get(release, Observed())


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Counts:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}


def _difference(now: Mapping[str, int], then: Mapping[str, int]) -> Counts:
    return {name: more for name, number in sorted(now.items()) if (more := number - then.get(name, 0))}
