"""Copies of requests for a release that nobody hears: a share of what the public release answered, after it has.

A copy is sent once its client has all of the answer, so nobody waits for it. Of a text only its length and the place of
the first difference are kept, and only as figures.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from deployments.gateway.call import Call
from deployments.gateway.figures import Figures
from deployments.gateway.messages import InferRequest, InferResponse
from deployments.gateway.names import Name
from deployments.gateway.places import Place
from deployments.gateway.routing import Routing
from deployments.gateway.rows import rows_of
from deployments.gateway.state import Known
from deployments.gateway.triton import Channels, NodeFailed
from infra.errors import EnginehouseError, GatewayError

MOST_AT_ONCE = 4
"""Copies that run through one gateway. Those that come while so many run are dropped."""
_LONGEST_SECONDS = 120.0
_LOOK_SECONDS = 0.1
"""How often a copy that runs makes sure that its node still has room."""
_LONGEST_TEXT = 64 << 10
"""Bytes of an answer that are compared."""


@dataclass
class Text:
    """The text of an answer as far as it is compared; `came`: whether it had any, be it empty."""

    read: bytearray = field(default_factory=bytearray)
    came: bool = False

    def note(self, response: InferResponse) -> None:
        for index, tensor in enumerate(response.outputs):
            if tensor.name == "text_output" and len(self.read) < _LONGEST_TEXT:
                self.came = True
                # A text is its length in four bytes, then itself.
                self.read += response.raw_output_contents[index][4:][: _LONGEST_TEXT - len(self.read)]


@dataclass(frozen=True)
class Copied:
    """A request that is to be copied to `release` once it has been answered."""

    release: int
    heard: Text = field(default_factory=Text)


class Shadows:
    """All calls come from the event loop."""

    def __init__(
        self, routing: Routing, channels: Channels, figures: Figures, most_at_once: int = MOST_AT_ONCE
    ) -> None:
        self._routing = routing
        self._channels = channels
        self._figures = figures
        self._most_at_once = most_at_once
        self._running: set[asyncio.Task[None]] = set()

    def chosen(self, known: Known, call: Call, name: Name) -> Copied | None:
        """Whether a request is of the share. None for one that goes to a canary, or to a release by its number."""
        if call.canary is not None or name.release is not None:
            return None
        shadow = known.traffic(known.places(name), name.model).shadow
        return None if shadow is None or random.random() >= shadow.share else Copied(shadow.release)

    def send(self, known: Known, call: Call, name: Name, request: InferRequest, copied: Copied) -> None:
        """Have a request copied that was answered, unless too many copies run, or no node has room.

        The request is not the caller's any more.
        """
        place = None if len(self._running) >= self._most_at_once else self._place(known, name, copied.release)
        if place is None:
            self._count(name, copied, "dropped")
            return
        task = asyncio.create_task(self._sent(known, place, call, name, request, copied))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """End all that run."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _place(self, known: Known, name: Name, release: int) -> Place | None:
        try:
            places = known.beside(known.places(name), name.model, release).nodes
        except GatewayError:  # nobody serves the model any more, which is no matter of a client that has its answer
            return None
        return self._routing.balance.choose([each for each in places if self._has_room(known, each, name)], "", ())

    def _has_room(self, known: Known, place: Place, name: Name) -> bool:
        """Whether real requests leave a slot of the node free. Where nobody knows its slots, none is."""
        slots = known.slots(place, name.model)
        return slots is not None and self._routing.balance.runs(place.node) < slots

    async def _sent(
        self, known: Known, place: Place, call: Call, name: Name, request: InferRequest, copied: Copied
    ) -> None:
        outcome = "failed"
        asking = asyncio.ensure_future(self._asked(place, call, name, request))
        try:
            until = time.monotonic() + _LONGEST_SECONDS
            while not (await asyncio.wait((asking,), timeout=_LOOK_SECONDS))[0]:
                if not self._has_room(known, place, name) or time.monotonic() > until:
                    outcome = "dropped"
                    return
            outcome = self._compared(name, copied, asking.result(), rows_of(request))
        except NodeFailed:
            outcome = "node-lost"
        except EnginehouseError as error:
            outcome = error.code
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            self._count(name, copied, outcome)

    async def _asked(self, place: Place, call: Call, name: Name, request: InferRequest) -> Text:
        """What the release answers. Raises NodeFailed, GatewayError and TritonError."""
        contract = await self._routing.contract(place, name.model)
        contract.check(request)
        request.model_name, request.id = contract.model, f"shadow-{call.id}"
        heard = Text()
        until = time.monotonic() + _LONGEST_SECONDS
        asked: AsyncGenerator[InferResponse] = self._channels.ask(place.node, request, until, cancels=contract.cancels)
        async with aclosing(asked) as responses:
            async for response in responses:
                heard.note(response)
        return heard

    def _compared(self, name: Name, copied: Copied, heard: Text, rows: int) -> str:
        """Whether both texts are the same; `answered` where there is no one text of each."""
        if rows != 1 or not heard.came or not copied.heard.came:
            return "answered"
        at = first_difference(bytes(copied.heard.read), bytes(heard.read))
        if at is None:
            return "same"
        self._figures.differed(name.model, str(copied.release), at, name.adapter)
        return "differs"

    def _count(self, name: Name, copied: Copied, outcome: str) -> None:
        self._figures.shadowed(name.model, str(copied.release), outcome, name.adapter)


def first_difference(one: bytes, other: bytes) -> int | None:
    """The first character that differs, counted from 0; None if none does. The end of a text is a difference."""
    if one == other:
        return None
    texts = one.decode(errors="replace"), other.decode(errors="replace")
    pairs = enumerate(zip(*texts, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(map(len, texts)))
