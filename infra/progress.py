"""How far a long transfer or conversion is, in bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, from whichever thread does the work."""


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
