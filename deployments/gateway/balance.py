"""Which node gets a request: the one with the fewest that run through this gateway, or the one of the client's key."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager

from deployments.gateway.places import Node, Place, PlaceKey

REST_SECONDS = 1.0
"""How long a node is left out whose connection has failed. Its report says so only after four that did not come."""
LOAD_FACTOR = 1.25
"""A key's own node takes at most so many times the average of running requests; above that the key's next one does.

Consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam, 2016.
"""

NodeKey = tuple[str, str]


class Balance:
    """Counts what runs on each node. All calls come from the event loop."""

    def __init__(self, rest_s: float = REST_SECONDS) -> None:
        self._rest_s = rest_s
        self._running: Counter[NodeKey] = Counter()
        self._resting: dict[NodeKey, float] = {}

    def choose(self, places: Sequence[Place], session: str, avoided: Collection[PlaceKey]) -> Place | None:
        """The place to ask; None if all are `avoided` or rest. With a `session`, equal ones go to the same node."""
        now = time.monotonic()
        able = [place for place in places if place.key not in avoided and self._resting.get(place.node.key, now) <= now]
        if not able:
            return None
        if not session:
            least = min(self._running[place.node.key] for place in able)
            return random.choice([place for place in able if self._running[place.node.key] == least])
        total = sum(self._running[place.node.key] for place in able)
        most = math.ceil(LOAD_FACTOR * (total + 1) / len(able))
        ranked = sorted(able, key=lambda place: _score(session, place.node.key), reverse=True)
        return next(place for place in ranked if self._running[place.node.key] < most)

    def runs(self, node: Node) -> int:
        """How many requests run on the node."""
        return self._running[node.key]

    @contextmanager
    def running(self, node: Node) -> Generator[None]:
        """Count a request while it runs on the node."""
        self._running[node.key] += 1
        try:
            yield
        finally:
            self._running[node.key] -= 1
            if not self._running[node.key]:
                del self._running[node.key]

    def failed(self, node: Node) -> None:
        """Leave the node out for a moment."""
        now = time.monotonic()
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        self._resting[node.key] = now + self._rest_s


def _score(session: str, node: NodeKey) -> bytes:
    """Rendezvous hashing: each key ranks the nodes by itself, so a node that goes moves only its own keys."""
    return hashlib.blake2b("\0".join((session, *node)).encode(errors="replace"), digest_size=8).digest()
