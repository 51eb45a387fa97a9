"""Requests that are never finished: their connections are closed, however many somebody opens.

uvicorn waits for ever for the rest of a request. Here each connection carries one request, whose head must have come
within a bound; the receiver sets one to the body.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0
"""For the head of a request, and as long again for its body: of at most 256 KiB, from a sender that has it ready."""

ONE_REQUEST = [("Connection", "close")]
"""Headers of every answer. On a connection that stays open, the next request would come without a bound."""


def punctual(seconds: float = REQUEST_SECONDS) -> type[H11Protocol]:
    """The protocol for uvicorn that closes a connection whose first request has no complete head within `seconds`."""

    class Punctual(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._bound = self.loop.call_later(seconds, self._end_unless_begun)

        def connection_lost(self, exc: Exception | None) -> None:
            self._bound.cancel()
            super().connection_lost(exc)

        def _end_unless_begun(self) -> None:
            if self.scope is None:  # pyright: ignore[reportUnnecessaryComparison]
                self.transport.close()

    return Punctual
