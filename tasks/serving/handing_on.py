"""A request of an ensemble, where `llm` has several processes: one takes it, and any other answers.

Triton gives each step of an ensemble to whichever process is free. So the first step hands the whole request on, beside
the ticket (`tickets`), and the second one, wherever it runs, answers the client by itself: no token goes from one
process to another. What they tell each other is only that a ticket was brought, that its request has ended, that it is
to be given out again, that a further step of it is over, and whom to cancel. Further second steps have the ticket
alone: these ask after the client.

Triton never ends the request of a process that has died. A step of it in another process can, by an error. So where one
process has both steps, another one keeps a further one, as the witness.

The last response is sent once all other steps have ended, also those that Triton has yet to begin (`tickets` says why).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .peers import MOST, Peers
from .runner import Runner
from .tickets import BROUGHT_SECONDS, Sender

_BROUGHT, _ENDED, _CLOSED, _AGAIN, _OVER = "brought", "ended", "closed", "again", "over"
_WITNESS, _UNKNOWN, _CANCEL = "witness", "unknown", "cancel"

_RANDOM_BITS = 55
WITNESS_WANTED = b"witness"
"""In place of a request: whoever else gets it keeps the step until the request has ended."""

DIED = "the process that had this request has died; ask again"
NOT_BROUGHT = "no process has begun with this request in time; ask again"


@dataclass
class _Taken:
    """A request of which this process has the first step."""

    first: Sender
    rows: int
    patience: asyncio.TimerHandle
    """With its second step, and then with further ones."""
    holder: int | None = None
    """The process that answers it."""
    witness: int | None = None
    """The process that keeps a step of it beside this one, if this one answers it."""
    further: int = 0
    """How many further second steps are not over."""
    last: Callable[[], object] | None = None
    """What follows the end of all of them, once the request has ended."""


class HandingOn:
    """Requests that this process has taken, and those that it answers for others.

    `given(number, rows, packed)` is the response with a ticket, and beside it the request unless that is empty.
    `failed(message)` is one with the error UNAVAILABLE. `final` are the flags that end a request. A ticket that nobody
    has brought after `patience_s` is given up. All but `number` is called on the event loop of the `runner`.
    """

    def __init__(
        self,
        runner: Runner,
        peers: Peers,
        *,
        given: Callable[[int, int, bytes], Any],
        failed: Callable[[str], Any],
        final: int,
        patience_s: float,
    ) -> None:
        self._runner = runner
        self._peers = peers
        self._given = given
        self._failed = failed
        self._final = final
        self._patience_s = patience_s
        self._taken: dict[int, _Taken] = {}
        self._ending: dict[int, tuple[int, Callable[[], object]]] = {}
        """What ends a request, by ticket, and the process whose step has to end before."""
        self._held: dict[int, int] = {}
        """The takers of the requests that this process answers, by ticket."""
        self._kept: dict[int, Sender] = {}
        """Steps of requests that another process has alone, by ticket."""

    def take(self, first: Sender, rows: int, packed: bytes) -> None:
        """The first step: give the request out, to whoever gets the second."""
        number = (self._peers.number << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        patience = asyncio.get_running_loop().call_later(self._patience_s, self._fail, number, NOT_BROUGHT)
        self._taken[number] = _Taken(first, rows, patience)
        first.send(self._given(number, rows, packed))

    def bring(self, number: int, start: Callable[[], object]) -> None:
        """The second step, with its request: this process answers it, once it is to `start`."""
        self._held[number] = _taker(number)
        start()
        if number in self._held:
            self._tell(number, _BROUGHT)
        if self._peers.lost:
            self._runner.fail(key_of(number), "unavailable", DIED)

    def look(self, number: int, second: Sender, cancelled: bool) -> None:
        """A further second step, which only says whether the client has left."""
        second.send(flags=self._final)
        self._over(number)
        if cancelled:
            self.cancel(key_of(number))

    def keep(self, number: int, step: Sender, cancelled: bool) -> None:
        """A further second step, of which a witness is to be made."""
        taker = _taker(number)
        if cancelled or number in self._kept or taker == self._peers.number:
            self.look(number, step, cancelled)
            return
        self._kept[number] = step
        if not self._peers.tell(taker, _WITNESS, number):
            self._let_go(number, DIED)

    def cancel(self, key: str) -> None:
        """End the request of that key, whichever process has it."""
        self._runner.cancel(key)
        self._peers.tell_all(_CANCEL, key)

    def again(self, number: int) -> None:
        """Have the ticket of a request that runs here given out again."""
        self._tell(number, _AGAIN)

    def end(self, number: int, last: Callable[[], object]) -> None:
        """The request that runs here has ended: send its `last` response, after all other steps are closed."""
        waits_for = self._held.pop(number, None)
        if waits_for == self._peers.number and number in self._taken:
            self._finish(number, last)
        elif waits_for is None or not self._peers.tell(waits_for, _ENDED, number):
            last()
        else:
            self._ending[number] = waits_for, last

    async def close(self) -> None:
        """Nothing runs any more. Send what would have waited for others, and leave them."""
        for number in [ticket for ticket, taken in self._taken.items() if taken.last is not None]:
            self._close_first(number)
        for number in list(self._ending):
            self._close(number)
        await self._peers.close()

    def heard(self, number: int, kind: str, value: Any) -> None:
        """What another process says."""
        match kind:
            case "cancel":
                self._runner.cancel(value)
            case "unknown":
                self._lose(value)
                self._let_go(value)
            case "closed":
                self._close(value)
            case "over":
                self._count_over(value)
            case "ended" if value in self._taken:
                self._finish(value, partial(self._peers.tell, number, _CLOSED, value))
            case "ended":
                self._let_go(value)
                self._peers.tell(number, _CLOSED, value)
            case _:
                if not self._hear(number, kind, value):
                    self._peers.tell(number, _UNKNOWN, value)

    def gone(self, number: int) -> None:
        """Another process is gone: what it has of a request fails by what this one has of it.

        If it died, all the others fail too. Triton goes on to give it requests, and their further second steps, and
        a node that finds it out kills all processes to load the release again: nothing would end these requests.
        """
        for ticket, taken in list(self._taken.items()):
            if taken.holder == number or taken.holder is None:
                # One that nobody has brought yet may have been on its way to that process.
                self._fail(ticket, DIED)
            elif taken.last is not None:
                self._close_first(ticket)
            elif taken.witness == number:
                self._runner.fail(key_of(ticket), "unavailable", DIED)
        for ticket in [ticket for ticket, (waits_for, _) in self._ending.items() if waits_for == number]:
            self._close(ticket)
        for ticket in [ticket for ticket in self._kept if _taker(ticket) == number]:
            self._let_go(ticket, DIED)
        for ticket, taker in list(self._held.items()):
            if taker == number:
                self._lose(ticket)
        if self._peers.lost:
            self._runner.fail(None, "unavailable", DIED)

    def _tell(self, number: int, kind: str) -> None:
        """Tell the process that has taken a request; this one itself, if it is that."""
        taker = _taker(number)
        if not (
            self._hear(taker, kind, number) if taker == self._peers.number else self._peers.tell(taker, kind, number)
        ):
            self._lose(number)

    def _hear(self, number: int, kind: str, ticket: int) -> bool:
        """Whether a ticket is known of which the process `number` tells something."""
        taken = self._taken.get(ticket)
        if taken is None:
            return False
        if kind == _BROUGHT:
            taken.holder = number
            taken.patience.cancel()
        elif kind == _AGAIN and taken.last is None:
            alone = taken.holder == self._peers.number and taken.witness is None
            taken.further += 1
            taken.first.send(self._given(ticket, taken.rows, WITNESS_WANTED if alone else b""))
        elif kind == _WITNESS and taken.last is None and taken.witness is None:
            taken.witness = number
        elif kind == _WITNESS:
            self._peers.tell(number, _ENDED, ticket)
        return True

    def _finish(self, ticket: int, last: Callable[[], object]) -> None:
        """The request of a first step that is here has ended: end that once all further steps are over, then `last`."""
        taken = self._taken[ticket]
        taken.last = last
        taken.patience.cancel()
        if taken.witness is not None:
            self._peers.tell(taken.witness, _ENDED, ticket)
        if not taken.further or self._peers.lost:
            self._close_first(ticket)
        else:
            taken.patience = asyncio.get_running_loop().call_later(BROUGHT_SECONDS, self._close_first, ticket)

    def _close_first(self, ticket: int) -> None:
        taken = self._forget(ticket)
        taken.first.send(flags=self._final)
        if taken.last is not None:
            taken.last()

    def _over(self, ticket: int) -> None:
        """A further second step has ended here: its taker counts them."""
        if (taker := _taker(ticket)) == self._peers.number:
            self._count_over(ticket)
        else:
            self._peers.tell(taker, _OVER, ticket)

    def _count_over(self, ticket: int) -> None:
        if (taken := self._taken.get(ticket)) is not None:
            taken.further -= 1
            if not taken.further and taken.last is not None:
                self._close_first(ticket)

    def _fail(self, ticket: int, message: str) -> None:
        if ticket in self._taken:
            self._forget(ticket).first.send(self._failed(message), flags=self._final)

    def _forget(self, ticket: int) -> _Taken:
        taken = self._taken.pop(ticket)
        taken.patience.cancel()
        return taken

    def _close(self, ticket: int) -> None:
        if ticket in self._ending:
            _, last = self._ending.pop(ticket)
            last()

    def _let_go(self, ticket: int, message: str = "") -> None:
        """End the step that this process keeps as a witness; with a message by an error, which ends the request."""
        if (step := self._kept.pop(ticket, None)) is not None:
            step.send(*([self._failed(message)] if message else []), flags=self._final)
            self._over(ticket)

    def _lose(self, ticket: int) -> None:
        """The process that took a request is gone, or has given it up."""
        if self._held.pop(ticket, None) is not None:
            self._runner.fail(key_of(ticket), "unavailable", DIED)


class Handed:
    """The sender of a request that another process may have taken."""

    def __init__(self, handing_on: HandingOn, number: int, second: Sender) -> None:
        self._handing_on = handing_on
        self._number = number
        self._second = second

    def send(self, *response: Any, flags: int = 0) -> None:
        send = partial(self._second.send, *response, flags=flags)
        if flags:
            self._handing_on.end(self._number, send)
        else:
            send()

    def is_cancelled(self) -> bool:
        """Triton does not tell this step; a further one hears it."""
        self._handing_on.again(self._number)
        return False


def key_of(number: int) -> str:
    """By which the request of a ticket is cancelled."""
    return f"ticket-{number}"


def _taker(number: int) -> int:
    return number >> _RANDOM_BITS


assert MOST << _RANDOM_BITS <= 1 << 63
