"""Keeps the moments of a load: each request is sent at its own, whatever became of those before.

A latency is counted from the intended moment. Counted from the sending, a server that stalls for two seconds would look
as if one request had been slow, since the others of these seconds would have come later than their users did.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tasks.load.arrivals import Ask
from tasks.load.outcome import Hearing, Outcome, RequestFailed
from tasks.load.wire import Call, Wire

MOST_OPEN = 20_000
"""Requests that wait for their answers. More than a machine has ports for would be errors of the load itself."""
_PULSE_S = 0.02
_READY_S = 0.05
"""Between the start and the first moment, so that this one is not late."""


@dataclass(frozen=True)
class Pace:
    """`at_once`: how many requests run at once; the others wait, and their waiting counts. None: as many as come.

    A request fails after `timeout_s`. None is sent after `seconds`.
    """

    at_once: int | None = None
    timeout_s: float = 120.0
    seconds: float | None = None


@dataclass(frozen=True)
class Listeners:
    """`outcome` gets each request that has ended, `gap` the request's number and each time between two pieces of text.

    `late` gets by how much the load's own clock was late, about fifty times a second. All in seconds.
    """

    outcome: Callable[[Outcome], None]
    gap: Callable[[int, float], None]
    late: Callable[[float], None]


class Load:
    """One load on one wire. `end` lets nothing more be sent and gives up what runs."""

    def __init__(self, wire: Wire, pace: Pace, listeners: Listeners) -> None:
        self._wire, self._pace, self._listeners = wire, pace, listeners
        self._turns = asyncio.Semaphore(pace.at_once) if pace.at_once else contextlib.nullcontext()
        self._places = asyncio.Semaphore(pace.at_once or MOST_OPEN)
        self._running: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Task[None] | None = None
        self.given_up = 0
        """Requests that ran when the load was ended."""
        self.ended = False

    async def run(self, asks: Iterator[Ask]) -> None:
        """Send all, and return once all are answered or failed."""
        start = time.monotonic() + _READY_S
        pulse = asyncio.create_task(self._pulse())
        self._sending = asyncio.create_task(self._send(asks, start))
        try:
            await self._sent(self._sending)
            while self._running:
                await asyncio.wait(self._running)
        finally:
            pulse.cancel()
            for task in (self._sending, *self._running):
                task.cancel()

    async def _sent(self, sending: asyncio.Task[None]) -> None:
        try:
            await sending
        except asyncio.CancelledError:
            # `end` cancels the sending alone. Whoever cancels the whole load wants to hear of it.
            if not self.ended:
                raise

    def end(self) -> None:
        """Give up. The outcomes so far stand; what ran is in none of them."""
        self.ended = True
        self.given_up = len(self._running)
        if self._sending is not None:
            self._sending.cancel()
        for task in self._running:
            task.cancel()

    async def _send(self, asks: Iterator[Ask], start: float) -> None:
        until = None if self._pace.seconds is None else start + self._pace.seconds
        for ask in asks:
            call = self._wire.prepare(ask.prompt)
            intended = start + ask.after_s if ask.after_s is not None else await self._free(start)
            if until is not None and intended >= until:
                return
            if (left := intended - time.monotonic()) > 0:
                await asyncio.sleep(left)
            if len(self._running) >= MOST_OPEN:
                self._refuse(ask, intended)
                continue
            task = asyncio.create_task(self._one(ask, call, intended))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            if ask.after_s is None:
                task.add_done_callback(lambda _: self._places.release())

    async def _free(self, start: float) -> float:
        """Take a place, as soon as fewer run than may. The moment at which that was so."""
        await self._places.acquire()
        return max(start, time.monotonic())

    async def _one(self, ask: Ask, call: Call, intended: float) -> None:
        begun = time.monotonic()
        hearing = Hearing(lambda seconds: self._listeners.gap(ask.number, seconds))
        sent = begun
        failed: RequestFailed | None = None
        try:
            async with asyncio.timeout_at(intended + self._pace.timeout_s), self._turns:
                sent = time.monotonic()
                await call(hearing)
        except RequestFailed as failure:
            failed = failure
        except TimeoutError:
            failed = RequestFailed("timeout", f"no end of an answer within {self._pace.timeout_s:g} s")
        if failed is None and hearing.last is None:
            failed = RequestFailed("empty", "the answer has no text")
        ended = time.monotonic() if failed is not None or hearing.last is None else hearing.last
        self._listeners.outcome(
            Outcome(
                number=ask.number,
                intended=intended,
                begun=begun,
                sent=sent,
                first=hearing.first,
                ended=ended,
                output_tokens=hearing.output_tokens,
                input_tokens=hearing.input_tokens,
                failure=failed.kind if failed else None,
                message=str(failed) if failed else "",
            )
        )

    def _refuse(self, ask: Ask, intended: float) -> None:
        now = time.monotonic()
        message = f"{MOST_OPEN} requests wait for an answer already"
        self._listeners.outcome(Outcome(ask.number, intended, now, now, None, now, failure="crowded", message=message))

    async def _pulse(self) -> None:
        """A load without moments of its own, and reading at all, is late where the event loop is."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + _PULSE_S, loop.time())
            await asyncio.sleep(due - loop.time())
            self._listeners.late(loop.time() - due)
