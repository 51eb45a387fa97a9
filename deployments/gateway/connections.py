"""Connections over HTTP/1.1 that are never finished, or cost more than they carry, are ended; idle ones are bounded.

uvicorn waits for ever for the rest of a request, takes any number of chunks, and any number of connections.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 16 << 10
MOST_CHUNKS = 4096
"""Pieces of one body. Taking one apart costs about 25 µs, and those of one read are taken apart in one go."""
LINGER_SECONDS = 5.0
"""How long the rest of a body is read and thrown away whose request is answered, so that the answer arrives."""


@dataclass
class Connections:
    """The connections of one server. Beyond `most`, the one that has been idle the longest makes room."""

    most: int
    head_s: float = HEAD_SECONDS
    linger_s: float = LINGER_SECONDS
    idle: dict[Patient, None] = field(default_factory=dict["Patient", None])
    """Those that wait for a request, the longest waiting first."""
    count: int = 0

    def protocol(self) -> Callable[..., Patient]:
        """What uvicorn makes for each connection."""

        def made(*arguments: object, **options: object) -> Patient:
            return Patient(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

        return made


class _Counted(h11.Connection):
    """Refuses a head or a body that costs more than it carries."""

    def __init__(self, head_bytes: int) -> None:
        super().__init__(h11.SERVER, head_bytes)
        self._pieces = 0
        self.refusal = 400, "this is no request of HTTP/1.1"

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = 0
            size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
            if size > HEAD_BYTES:
                self._refuse(431, "the head is too large")
        elif isinstance(event, h11.Data):
            self._pieces += 1
            if self._pieces > MOST_CHUNKS:
                self._refuse(413, "the body comes in too many pieces")
        return event

    def _refuse(self, status: int, message: str) -> None:
        self.refusal = status, message
        raise h11.RemoteProtocolError(message, error_status_hint=status)


class Patient(H11Protocol):
    """uvicorn's protocol with bounds for the head of each request, and for what follows an answer."""

    def __init__(self, connections: Connections, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportArgumentType]
        self.conn = self._counted = _Counted(HEAD_BYTES)
        self._connections = connections
        self._bound: asyncio.TimerHandle | None = None
        self._hears = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections = self._connections
        connections.count += 1
        connections.idle[self] = None
        self._bound = self.loop.call_later(connections.head_s, self._end)
        if connections.count > connections.most:
            next(iter(connections.idle))._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unbind()
        self._connections.count -= 1
        self._connections.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._hears:
            return
        if self._waits and self._bound is None:
            # The first bytes of a further request: uvicorn's own bound of an idle connection ends with them.
            self._bound = self.loop.call_later(self._connections.head_s, self._end)
        super().data_received(data)
        if not self._waits and self._hears:
            self._unbind()
            self._connections.idle.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waits and not self.transport.is_closing():
            self._connections.idle[self] = None
            if self.conn.their_state is h11.SEND_BODY:
                self._bound = self.loop.call_later(self._connections.linger_s, self._end)

    def send_400_response(self, msg: str) -> None:
        """Say what h11 refuses, unless an answer has begun, and hear no more of this client."""
        self._say(*self._counted.refusal)
        self._hears = False
        self._unbind()
        self._bound = self.loop.call_later(self._connections.linger_s, self.transport.close)

    def _say(self, status: int, message: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = json.dumps({"error": message}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))

    @property
    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def _unbind(self) -> None:
        if self._bound is not None:
            self._bound.cancel()
            self._bound = None

    def _end(self) -> None:
        """Close, and count as idle no longer. A head that came in part is answered."""
        self._connections.idle.pop(self, None)
        if self._waits and self.conn.trailing_data[0]:
            self._say(408, f"the head did not come within {self._connections.head_s:g} s")
        self.transport.close()
