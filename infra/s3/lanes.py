"""Pieces of work on a few threads at once, with only a few pieces in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import TypeVar

ResultT = TypeVar("ResultT")

LANES = 6
"""Transfers at once. Half of them keep a loopback server busy, and more make it slower. A distant server serves each
with about 85 MB/s. Source: Amazon's guide "Performance design patterns for Amazon S3"."""

CHUNK_BYTES = 256 << 10
"""Read, hashed, and written or sent in one go. It fits into the processor's cache: that halves the time of a download's
hashing and writing, and beside a busy server saves up to a third of all that an upload takes of a core."""

_AHEAD = 2
"""Pieces that wait for a free lane, so that no lane waits for the disk or for a hash."""


def in_lanes(work: Iterable[Callable[[], ResultT]]) -> Generator[ResultT]:
    """Call every piece of `work`, LANES at once, and yield their results as they end.

    The next piece is taken from `work` only when a result is taken, so at most LANES + 2 of them are in memory. An
    error of a piece is raised in its turn, after the pieces that were running have ended.
    """
    with ThreadPoolExecutor(LANES, thread_name_prefix="transfer") as pool:
        running: set[Future[ResultT]] = set()
        try:
            for piece in work:
                running.add(pool.submit(piece))
                if len(running) == LANES + _AHEAD:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
