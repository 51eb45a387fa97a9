"""Times in buckets whose bounds grow by one part in 500: any number of them in a fixed memory, right to 0.1 %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

_LEAST_S = 1e-6
_MOST_S = 24 * 3600.0
_GROWTH = 1.002
_COUNT = math.ceil(math.log(_MOST_S / _LEAST_S) / math.log(_GROWTH)) + 1
_STEP = math.log(_GROWTH)


class Buckets:
    """Times in seconds. What is shorter than a microsecond counts as that, what is longer than a day likewise."""

    def __init__(self) -> None:
        self._counts = np.zeros(_COUNT, dtype=np.int64)
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0

    def add(self, seconds: float) -> None:
        self._counts[_place(seconds)] += 1
        self.count += 1
        self.total += seconds
        self.least, self.most = min(self.least, seconds), max(self.most, seconds)

    @property
    def mean(self) -> float:
        return self.total / self.count

    def percentile(self, which: float) -> float:
        """In seconds: the middle of the bucket that holds it, within the least and the most. Needs one time or more."""
        place = int(np.searchsorted(np.cumsum(self._counts), max(1, math.ceil(self.count * which / 100))))
        return min(max(_LEAST_S * math.exp((place + 0.5) * _STEP), self.least), self.most)

    def __iter__(self) -> Iterator[tuple[float, int]]:
        """The middle of each bucket that holds something, and how many."""
        for place in np.flatnonzero(self._counts):
            yield _LEAST_S * math.exp((int(place) + 0.5) * _STEP), int(self._counts[place])


def filled(times: Iterable[float]) -> Buckets:
    """Buckets with these times."""
    made = Buckets()
    for seconds in times:
        made.add(seconds)
    return made


def _place(seconds: float) -> int:
    return min(int(math.log(seconds / _LEAST_S) / _STEP), _COUNT - 1) if seconds > _LEAST_S else 0
