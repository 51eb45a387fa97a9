"""Work on a few threads at once, with results in the order of the work and only a few pieces of it in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

LANES = 8
"""Transfers at once. A loopback server is busy with half of them, a distant one brings about 85 MB/s to each. Source:
Amazon's guide "Performance design patterns for Amazon S3"."""

_AHEAD = 2
"""Pieces that are ready before a lane is free, so that no lane waits for the disk or for a hash."""


def in_lanes(work: Iterable[Callable[[], _T]]) -> Generator[_T]:
    """Call all of `work`, LANES at once, and yield what they return in their order.

    `work` is drawn from only as results are taken: at most LANES + 2 pieces are in memory, whatever their number. An
    error of one is raised in its turn; the others have then ended.
    """
    with ThreadPoolExecutor(LANES, thread_name_prefix="transfer") as pool:
        pending: deque[Future[_T]] = deque()
        try:
            for piece in work:
                pending.append(pool.submit(piece))
                if len(pending) == LANES + _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
