"""Requests through an ensemble, of which Triton tells nobody that its client has left.

Triton passes a cancellation on to the steps of an ensemble that start later, and to none that runs (2.51,
`ScheduleSteps` in `core/src/ensemble_scheduler/ensemble_scheduler.cc`). So the ensemble of a release asks `llm` twice.
The first step takes the request and answers with a ticket; the second takes the ticket, and its answer is the client's.
While a request runs, its first step gives out the same ticket again and again. Each begins a further second step: it
ends without an answer, and is cancelled from the start if the client has left.

The last response waits until every ticket that was given out has been brought: of an ensemble that has failed Triton
2.51 counts no step any more that ends later, keeps its request for ever, and so never unloads it (`PrepareSteps`, same
file).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Protocol

TICKET = "ticket"
"""The tensor, `[batch, 1]`: the output of the first step, and the one input of the second."""

HANDED_ON = "handed_on"
"""The tensor beside it where several processes share tickets (`handing_on`), BYTES `[batch, 1]`: the request in its
first row."""


BROUGHT_SECONDS = 10.0
"""How long the last response waits for tickets that were given out. Triton brings one in milliseconds."""


class Sender(Protocol):
    """What Triton has for each request of a decoupled model; `flags` other than 0 end the request."""

    def send(self, *response: Any, flags: int = ...) -> None: ...

    def is_cancelled(self) -> bool: ...


class Tickets:
    """Those of all requests that run. `given(number, rows)` is the response that holds one.

    All but `take` is called on the event loop: a response takes time, in which Triton's own thread takes no request.
    """

    def __init__(self, given: Callable[[int, int], Any]) -> None:
        self._given = given
        self._requests: dict[int, Ticketed] = {}

    def take(self, first: Sender, rows: int) -> Ticketed:
        """A ticket for a request of so many rows, from any thread. Its answers go to whoever brings it."""
        number = secrets.randbits(63)
        made = Ticketed(first, lambda: self._given(number, rows), lambda: self._requests.pop(number, None))
        self._requests[number] = made
        return made

    def bring(self, number: int, second: Sender, cancelled: bool, final: int) -> None:
        """A second step has begun. `final` are the flags that end it, if it is not the first one with its ticket."""
        if (known := self._requests.get(number)) is None:
            second.send(flags=final)
        else:
            known.brought(second, cancelled, final)

    async def close(self) -> None:
        """Nothing runs any more. Send the last responses that still wait."""
        for request in list(self._requests.values()):
            request.end()


class Ticketed:
    """The sender of a request that has a ticket. What is sent before the ticket has been brought waits for it."""

    def __init__(self, first: Sender, ticket: Callable[[], Any], forget: Callable[[], object]) -> None:
        self.when_cancelled: Callable[[], object] = lambda: None
        """Called when a second step says that the client has left."""
        self._first = first
        self._ticket = ticket
        self._forget = forget
        self._given = self._brought = 0
        self._second: Sender | None = None
        self._waiting: list[tuple[Any, ...]] = []
        self._last: tuple[tuple[Any, ...], int] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def give(self) -> None:
        """Give the ticket out, again too."""
        self._given += 1
        self._first.send(self._ticket())

    def send(self, *response: Any, flags: int = 0) -> None:
        if not self._given:
            # An error: nothing has begun that could bring a ticket.
            self._forget()
            self._first.send(*response, flags=flags)
        elif flags:
            self._last = response, flags
            self._end_in_time()
        elif self._second is None:
            self._waiting.append(response)
        else:
            self._second.send(*response)

    def is_cancelled(self) -> bool:
        """Give out the ticket once more: who brings it knows. Not after the last response."""
        self.give()
        return False

    def brought(self, second: Sender, cancelled: bool, final: int) -> None:
        """A step has brought the ticket. The first one gets the answers, a further one ends with the flags `final`."""
        self._brought += 1
        if self._second is None:
            self._second = second
            for response in self._waiting:
                second.send(*response)
        else:
            second.send(flags=final)
        if cancelled:
            self.when_cancelled()
        self._end_in_time()

    def end(self) -> None:
        """Send the last response, if it has come, and if there is whom to send it to."""
        if self._last is None or self._second is None:
            return
        self._forget()
        (response, flags), self._last = self._last, None
        # Before the other, so that the last response is the end of both.
        self._first.send(flags=flags)
        self._second.send(*response, flags=flags)

    def _end_in_time(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._brought == self._given:
            self.end()
        elif self._last is not None:
            self._patience = asyncio.get_running_loop().call_later(BROUGHT_SECONDS, self.end)
