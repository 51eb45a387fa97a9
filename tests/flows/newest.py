"""Which weights are the newest, worked out from what went in and when, by the words of docs/how-to/new-weights.md.

Nothing of it is asked of the code, but for what became of an event. Of two that came at once either may be newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.flows.house_of_records import Came, House


@dataclass(frozen=True)
class Newest:
    """What is right in a house that has come to rest."""

    house: House

    def weights(self) -> dict[str, Came]:
        """All weights, by revision, and when the event came that they count for."""
        found: dict[str, Came] = {}
        for id, each in self.house.came.items():
            digest = each.sent.revision
            other = self.house.looked_up.get(digest)
            is_again = (
                other is not None and self.house.state(id) != "accepted" and self.house.state(other) != "duplicate"
            )
            found[digest] = Came(each.sent, *self.house.found[other]) if other is not None and is_again else each
        return found

    def is_newer(self, one: Came, other: Came) -> bool:
        """Whether `one` is newer than `other` for certain."""
        if one.sent.kind == other.sent.kind != "prefix":
            return one.sent.number > other.sent.number
        return one.begun > self.latest(other)

    def latest(self, one: Came) -> int:
        """The last minute at which it may have come. A version counts as not older than the lower ones."""
        lower = [
            each.kept
            for each in self.house.came.values()
            if each.sent.kind == one.sent.kind == "version"
            and each.sent.number < one.sent.number
            and each.sent.revision in self.house.accepted
        ]
        return max([one.kept, *lower])

    def check(self) -> None:
        assert all(self.house.state(id) not in (None, "received") for id in self.house.sent), "an event has no decision"
        came = self.weights()
        good = {
            digest: each
            for digest, each in came.items()
            if digest in self.house.accepted and digest not in self.house.refused
        }
        newest = {
            digest for digest, each in good.items() if not any(self.is_newer(other, each) for other in good.values())
        }
        live = self.house.public[-1][1] if self.house.public else None
        assert live in newest or not newest, "the newest accepted weights are not live"
        for (since, before), (_, after) in zip(self.house.public, self.house.public[1:], strict=False):
            # Weights of the file that went live before any event brought them are nobody's newest.
            if before in good and after in came and self.house.accepted[before] < since:
                assert not self.is_newer(good[before], came[after]), "older weights took the place of newer ones"
        for id, each in self.house.came.items():
            if self.house.state(id) == "refused":
                assert self.was_late(each, good), "an event was refused that was not too late"

    def was_late(self, one: Came, good: Mapping[str, Came]) -> bool:
        went_live = {digest for _, digest in self.house.public}
        return (one.sent.kind == "push" and one.sent.number < len(self.house.branch) - 1) or any(
            not self.is_newer(one, each)
            for digest, each in self.weights().items()
            if each is not one and (digest in went_live or each.sent.kind == one.sent.kind == "version")
        )
