"""How far apart the responses of a stream are, when many streams share one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager

SHARE = 0.5
"""Of the loop's time, what responses of streams that have begun may take. The rest is for those that have not, and for
what the engine says."""

_MEAN_OF = 64
"""Responses, about, over which the time of one is averaged."""

_SHORTEST_S = 0.001
"""A rest that is worth a timer."""


class Pace:
    """Lets streams rest between their responses, so that all of them together take no more than their share.

    A response holds the loop for some 0.3 ms in Triton's Python backend, however little is in it. Without rests 96
    streams of 50 tokens a second take all of the loop's time, and who comes new waits behind every token of theirs.
    With them a response holds the tokens that came meanwhile, and few streams never rest.
    """

    def __init__(self) -> None:
        self._begun: set[Stream] = set()
        self._mean_s = 0.0

    def interval_s(self) -> float:
        """Between the beginnings of two responses of one stream."""
        return len(self._begun) * self._mean_s / SHARE

    @contextmanager
    def stream(self) -> Generator[Stream]:
        """One that begins with its first response, until it ends."""
        stream = Stream(self)
        try:
            yield stream
        finally:
            self._begun.discard(stream)

    def responded(self, stream: Stream, seconds: float) -> None:
        """A response of it held the loop for so long."""
        self._begun.add(stream)
        self._mean_s += (seconds - self._mean_s) / _MEAN_OF


class Stream:
    """The responses of one stream."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._began = 0.0

    @contextmanager
    def response(self) -> Generator[None]:
        """One that is sent meanwhile, all on the event loop."""
        self._began = time.monotonic()
        yield
        self._pace.responded(self, time.monotonic() - self._began)

    async def rest(self) -> None:
        """Until the stream may send again."""
        left = self._began + self._pace.interval_s() - time.monotonic()
        if left >= _SHORTEST_S:
            await asyncio.sleep(left)
