"""An event loop that keeps its moments to a tenth of a millisecond.

asyncio hands epoll whole milliseconds, rounded up, so each moment would be met half a millisecond late on the average.
A file descriptor of epoll can itself be waited for by select, which takes microseconds.
"""

from __future__ import annotations

import asyncio
import select
import selectors

_MOST_DESCRIPTOR = 1023
"""select takes no higher one; the loop's own is made before any connection."""


class _FineSelector(selectors.EpollSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0 and self.fileno() <= _MOST_DESCRIPTOR:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def punctual_loop() -> asyncio.AbstractEventLoop:
    """For `asyncio.Runner(loop_factory=…)`."""
    return asyncio.SelectorEventLoop(_FineSelector())
