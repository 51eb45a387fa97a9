"""HTTP/1.1 for many answers at once that come in pieces: connections that are kept, and the moment of each byte.

h11 speaks the protocol. It is driven by a protocol of asyncio and not by a client library, because what counts is when
bytes came, and a library tells that after its own work on them.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from infra.errors import UsageError
from tasks.load.outcome import FailureKind, RequestFailed

Data = Callable[[bytes, float], None]
"""Bytes of an answer, and when they came."""

_LARGEST_REFUSAL = 64 << 10
_IDLE_S = 2.0
"""After which a connection is not used again: a server may be closing it (uvicorn does after 5 s)."""
_KINDS: dict[int, FailureKind] = {
    401: "unauthorized", 403: "unauthorized", 408: "deadline", 429: "limited", 502: "unavailable",
    503: "unavailable", 504: "deadline",
}  # fmt: skip


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, url: str, certificate: str = "") -> Address:
        """`http://host:port` or `https://…`; `certificate` is a file of the authorities to trust in place of the usual.

        Raises UsageError, code `load-address`.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise UsageError(f"'{url}' is no address", hint="for example http://127.0.0.1:8080", code="load-address")
        if parts.scheme == "http":
            return cls(parts.hostname, port or 80)
        try:
            return cls(parts.hostname, port or 443, ssl.create_default_context(cafile=certificate or None))
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{certificate} is no certificate: {error}", code="load-address") from None


class Connections:
    """Those to one server. A connection whose answer has ended is used for a further request."""

    def __init__(self, address: Address, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self._address = address
        self._headers = (("Host", f"{address.host}:{address.port}"), ("Accept", "*/*"), *headers)
        self._free: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def ask(self, method: str, path: str, body: bytes, data: Data) -> None:
        """Send a request and hand over its answer as it comes. Raises RequestFailed."""
        connection = await self._connect()
        length = (("Content-Type", "application/json"), ("Content-Length", str(len(body)))) if body else ()
        try:
            await connection.ask(h11.Request(method=method, target=path, headers=[*self._headers, *length]), body, data)
        finally:
            if connection.reuse():
                self._free.append(connection)
            else:
                self._open.discard(connection)
                connection.close()

    async def _connect(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open and time.monotonic() - connection.used_at < _IDLE_S:
                return connection
            self._open.discard(connection)
            connection.close()
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(
                _Connection, self._address.host, self._address.port, ssl=self._address.tls
            )
        except OSError as error:
            raise RequestFailed("unreachable", str(error)) from error
        self._open.add(made)
        return made

    def close(self) -> None:
        for connection in self._open:
            connection.close()
        self._open.clear()
        self._free.clear()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._http = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[None] | None = None
        self._data: Data = _no_data
        self._status = 0
        self._refusal = bytearray()
        self.open = False
        self.used_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end(RequestFailed("broken", f"the connection ended before the answer{f': {exc}' if exc else ''}"))

    async def ask(self, request: h11.Request, body: bytes, data: Data) -> None:
        assert self._transport is not None
        self._data, self._status = data, 0
        self._refusal.clear()
        self._ended = asyncio.get_running_loop().create_future()
        sent = [self._http.send(request), self._http.send(h11.Data(body)) if body else b""]
        sent.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(part or b"" for part in sent))
        try:
            await self._ended
        finally:
            self._ended, self._data = None, _no_data

    def data_received(self, data: bytes) -> None:
        moment = time.monotonic()
        try:
            self._http.receive_data(data)
            self._read(moment)
        except h11.RemoteProtocolError as error:
            self._end(RequestFailed("malformed", f"this is no HTTP: {error}"))
        except RequestFailed as failure:
            self._end(failure)

    def eof_received(self) -> None:
        self.data_received(b"")

    def _read(self, moment: float) -> None:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                self._status = event.status_code
            elif isinstance(event, h11.Data):
                if self._status == 200:
                    self._data(bytes(event.data), moment)
                elif len(self._refusal) < _LARGEST_REFUSAL:
                    self._refusal += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._end(None if self._status == 200 else _refusal(self._status, bytes(self._refusal)))
                return
            elif not isinstance(event, h11.InformationalResponse):
                return

    def reuse(self) -> bool:
        """Whether this connection takes a further request; it is ready for it then."""
        if not self.open or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self.used_at = time.monotonic()
        return True

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def _end(self, failure: RequestFailed | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)


def _no_data(data: bytes, moment: float) -> None:
    """Nobody waits for an answer any more."""


def _refusal(status: int, body: bytes) -> RequestFailed:
    kind = _KINDS.get(status, "failed" if status >= 500 else "refused")
    return RequestFailed(kind, f"HTTP {status}: {body.decode(errors='replace')}")
