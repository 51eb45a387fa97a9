"""How far a long transfer or conversion is, in bytes, how fast it goes, and how long it will go on."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from infra.units import age, size

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from whichever thread does the work."""

WINDOW_SECONDS = 30.0
"""The rate is that of the last half minute: a network is now fast, now slow."""
_APART_SECONDS = 0.1
"""Looks that are closer than this count as one: pieces may come by the thousand."""
_LEAST_SECONDS = 0.5
"""Nobody can tell a rate from less: the first pieces come out of buffers."""


class ByteCounter:
    """Adds up pieces of bytes, from any thread, and hands their sum to `progress`. `total` is bytes in all."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Count `count` more bytes."""
        with self._lock:
            self._done += count
            self._progress(self._done, self._total)

    def reach(self, done: int) -> None:
        """Set the sum to `done`, where a client counted bytes twice, or not at all."""
        with self._lock:
            self._done = done
            self._progress(self._done, self._total)


class Pace:
    """What is looked at again and again: how far it is, how fast it goes, and how long it will take.

    A step may have several such works, one after the other. The next one has begun where fewer bytes are done than
    before, or there are others in all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._total = 0

    def look(self, done: int, total: int) -> str:
        """`21 % of 93.8 MiB, 12.0 MiB/s, 6 s left`, or as much of it as can be told. `total` is above 0."""
        now = self._clock()
        if self._seen and (done < self._seen[-1][1] or total != self._total):
            self._seen.clear()
        self._total = total
        if not self._seen or now - self._seen[-1][0] >= _APART_SECONDS:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        text = f"{100 * done / total:.0f} % of {size(total)}"
        since, before = self._seen[0]
        if now - since < _LEAST_SECONDS or done >= total:
            return text
        rate = (done - before) / (now - since)
        return f"{text}, {size(rate)}/s" + (f", {age((total - done) / rate)} left" if rate else "")
