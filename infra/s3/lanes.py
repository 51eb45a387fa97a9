"""Work on a few threads at once, with only a few pieces of it in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from typing import TypeVar

ResultT = TypeVar("ResultT")

LANES = 6
"""Transfers at once. A loopback server is busy with half of them, and more make it slower; a distant one brings about
85 MB/s to each. Source: Amazon's guide "Performance design patterns for Amazon S3"."""

CHUNK_BYTES = 256 << 10
"""Read, hashed, and written or sent in one go. It fits into the processor's cache: that halves the time of a download's
hashing and writing, and beside a busy server saves up to a third of all that an upload takes of a core."""

_AHEAD = 2
"""Pieces that are ready before a lane is free, so that no lane waits for the disk or for a hash."""


def in_lanes(work: Iterable[Callable[[], ResultT]]) -> Generator[ResultT]:
    """Call all of `work`, LANES at once, and yield what they return as they end.

    `work` is drawn from only as results are taken: at most LANES + 2 pieces are in memory, whatever their number. An
    error of one is raised in its turn; the others have then ended.
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
