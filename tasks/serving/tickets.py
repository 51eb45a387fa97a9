"""Requests through an ensemble, of which Triton tells nobody that its client has left.

Triton passes a cancellation on to the steps of an ensemble that start later, and to none that runs (2.51,
`ScheduleSteps` in `core/src/ensemble_scheduler/ensemble_scheduler.cc`). So the ensemble of a release asks `llm` twice.
The first step takes the request and answers with a ticket; the second takes the ticket, and its answer is the client's.
While a request runs, its first step gives out the same ticket again and again. Each begins a further second step: it
ends without an answer, and is cancelled from the start if the client has left.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

TICKET = "ticket"
"""The tensor, `[batch, 1]`: the output of the first step, and the one input of the second."""

TICKET_INTERVAL_S = 0.4
"""How often a running request gives out its ticket, and so how late it may be cancelled."""


class Sender(Protocol):
    """What Triton has for each request of a decoupled model; `flags` other than 0 end the request."""

    def send(self, *response: Any, flags: int = ...) -> None: ...

    def is_cancelled(self) -> bool: ...


class Tickets:
    """Those of all requests that run. `given(number, rows)` is the response that holds one."""

    def __init__(self, given: Callable[[int, int], Any]) -> None:
        self._given = given
        self._requests: dict[int, _Ticketed] = {}

    def take(self, first: Sender, rows: int) -> Sender:
        """Give out a ticket for a request of so many rows; its answers go to whoever brings it."""
        number = secrets.randbits(63)

        def forget() -> None:
            self._requests.pop(number, None)

        made = self._requests[number] = _Ticketed(first, lambda: self._given(number, rows), forget)
        made.give()
        return made

    def bring(self, number: int, second: Sender, *, cancelled: bool, final: int) -> None:
        """A second step has begun. `final` are the flags that end it, if it is not the first one with its ticket."""
        known = self._requests.get(number)
        if known is None or not known.brought(second, cancelled):
            second.send(flags=final)


class _Ticketed:
    """The sender of a request that has a ticket. What is sent before the ticket has been brought waits for it."""

    def __init__(self, first: Sender, ticket: Callable[[], Any], forget: Callable[[], None]) -> None:
        self._first = first
        self._ticket = ticket
        self._forget = forget
        self._given_at = 0.0
        self._cancelled = False
        self._ended = False
        self._lock = threading.Lock()
        self._second: Sender | None = None
        self._waiting: list[tuple[tuple[Any, ...], int]] = []

    def give(self) -> None:
        self._given_at = time.monotonic()
        self._first.send(self._ticket())

    def send(self, *response: Any, flags: int = 0) -> None:
        if flags:
            self._ended = True
            # Before the other, so that the last response is the end of both.
            self._first.send(flags=flags)
        with self._lock:
            if self._second is None:
                self._waiting.append((response, flags))
                return
        self._second.send(*response, flags=flags)
        if flags:
            self._forget()

    def is_cancelled(self) -> bool:
        if not self._ended and time.monotonic() - self._given_at >= TICKET_INTERVAL_S:
            self.give()
        return self._cancelled

    def brought(self, second: Sender, cancelled: bool) -> bool:
        """Whether it is the first that has brought the ticket: then the answers are its own."""
        self._cancelled |= cancelled
        with self._lock:
            if self._second is not None:
                return False
            for response, flags in self._waiting:
                second.send(*response, flags=flags)
                if flags:
                    self._forget()
            self._second = second
        return True
