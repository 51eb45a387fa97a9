"""Which release on which node gets a request, and what that release takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from deployments.gateway.balance import Balance
from deployments.gateway.call import Call
from deployments.gateway.contract import Contract
from deployments.gateway.names import Name, asked_names
from deployments.gateway.places import Place, PlaceKey
from deployments.gateway.state import Watch
from deployments.gateway.triton import Channels, NodeFailed, ending
from infra.errors import GatewayError

PATIENCE_SECONDS = 10.0
"""How long a request waits for a node that can answer it: a Triton that died is back in about five seconds."""
MOST_TRIES = 8
_LOOK_SECONDS = 0.05
_STALE_SECONDS = 1.0
"""How long what the nodes say now is waited for before they are asked by what they said last."""


class Routing:
    """All calls come from the event loop."""

    def __init__(self, watch: Watch, channels: Channels, patience_s: float) -> None:
        self.balance = Balance()
        self._watch = watch
        self._channels = channels
        self._patience_s = patience_s
        self._contracts: dict[tuple[str, str, int], Contract] = {}

    async def chosen(self, call: Call) -> tuple[Place, Contract]:
        """A node for the call, and what the release takes that answers there. Raises GatewayError and TritonError."""
        avoided: set[PlaceKey] = set()
        for _ in range(MOST_TRIES):
            place = await self.place(call, avoided)
            try:
                return place, await self.contract(place, name_of(call).model)
            except NodeFailed as failure:
                self.failed(place, failure, avoided)
        raise unanswered(name_of(call))

    async def contract(self, place: Place, model: str) -> Contract:
        """That of the release there. Raises NodeFailed and TritonError."""
        key = place.node.target, model, place.release
        if (known := self._contracts.get(key)) is None:
            found = await self._channels.metadata(place.node, *asked_names(model, place.release))
            known = self._contracts.setdefault(key, Contract.of(found))
        return known

    async def place(self, call: Call, avoided: set[PlaceKey]) -> Place:
        """A node for the call, waited for if there is none now. After a fresh look no place is `avoided` any more."""
        name, seen = asked_of(call), self._watch.known.reading
        looked = time.monotonic()
        until = min(call.until, looked + self._patience_s)
        while True:
            known = self._watch.known
            place = self.balance.choose(known.places(name).nodes, call.session, avoided)
            if place is not None:
                return place
            if self._channels.is_cut:
                raise ending()
            if call.pinned is not None and call.pinned == call.canary:
                raise _gone(name)  # the public release is there, so nobody waits for the canary
            now = time.monotonic()
            if now >= until:
                raise unanswered(name)
            if known.reading > seen + 1 or now > looked + _STALE_SECONDS:  # read as a whole since, or not to be read
                seen, looked = known.reading, now
                avoided.clear()
            await asyncio.sleep(_LOOK_SECONDS)

    def canary_place(self, call: Call, avoided: Collection[PlaceKey]) -> Place | None:
        """A node for a call that goes to a canary. None for all others; where no node has it now, it is one of them."""
        if call.canary is None:
            return None
        known, name = self._watch.known, name_of(call)
        nodes = known.beside(known.places(name), name.model, call.canary).nodes
        place = self.balance.choose(nodes, call.session, avoided)
        if place is None:
            call.canary = None
        return place

    def failed(self, place: Place, failure: NodeFailed, avoided: set[PlaceKey]) -> None:
        """Leave the place out, its node if nobody reached it, and look what the nodes say now."""
        avoided.add(place.key)
        if failure.connection:
            self.balance.failed(place.node)
        self._watch.hurry()


def name_of(call: Call) -> Name:
    """What its client asked for."""
    assert call.name is not None, "the call has not been `named`"
    return call.name


def asked_of(call: Call) -> Name:
    """The name that the call's requests go to."""
    name = name_of(call)
    return name if call.pinned is None else Name(name.model, call.pinned, adapter=name.adapter)


def unanswered(name: Name) -> GatewayError:
    return GatewayError(
        f"no node answers for '{name}' now",
        hint="the nodes' /ready addresses say why",
        code="model-not-ready",
        retryable=True,
        retry_after_s=2,
    )


def _gone(name: Name) -> GatewayError:
    return GatewayError(f"no node answers for the canary '{name}' now", code="release-not-loaded", retryable=True)
