"""One call of gRPC with streams both ways, on a connection of its own: HTTP/2 as far as that takes.

grpc.aio hands each message to the event loop by itself, so whoever answers clients never sees how far behind it is.
96 streams of 50 tokens a second on 2 busy cores cost the model's process 330 us of CPU and 10 switches of threads a
token, and each token was a message of its own. What has come is read at once here: 80 us, and one switch.

Frames are those of RFC 9113, messages those of gRPC's "PROTOCOL-HTTP2.md". The peer is a server on this machine: no
TLS, no compression, and no header that comes back is read, since all that Triton has to say of a request is a message.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_CONNECTION, _CALL = 0, 1
"""Numbers of streams: a client's first is 1, and here it is the only one."""
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 4, 5
_DEFAULT_WINDOW, _LARGEST_WINDOW = 2**16 - 1, 2**31 - 1
_CREDIT = 2**24
"""Bytes after which the server is told that they were read."""

_FRAME = struct.Struct(">BHBBL")
_MESSAGE = struct.Struct(">BL")


class GrpcStream(asyncio.Protocol):
    """A running call. `read` gets the messages that came at once, `ended` once why there will be none any more."""

    def __init__(
        self, address: str, method: str, read: Callable[[Sequence[bytes]], None], ended: Callable[[str], None]
    ) -> None:
        self._read, self._ended = read, ended
        self._transport: asyncio.Transport | None = None
        self._received, self._messages = bytearray(), bytearray()
        self._unsent = bytearray()
        self._credit = 0
        """Bytes that were read and of which the server was not told."""
        self._window = {_CONNECTION: _DEFAULT_WINDOW, _CALL: _DEFAULT_WINDOW}
        """Bytes that the server takes."""
        self._initial_window, self._frame_size = _DEFAULT_WINDOW, 2**14
        self._reason = "the connection was closed"
        self._closed = self._ending = False
        self._greeting = _greeting(address, method)

    def send(self, message: bytes) -> None:
        """At once, or once the server takes it."""
        self._unsent += _MESSAGE.pack(0, len(message)) + message
        self._send()

    def end(self) -> None:
        """Nothing more is sent: the server ends the call by itself once it has answered."""
        self._ending = True
        self._send()

    def close(self) -> None:
        """Cancel the call: the server hears of it at once. `ended` is not called."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def fail(self, reason: str) -> None:
        """There is no connection, or none that can be used any more."""
        self._reason = reason
        if self._transport is not None:
            self._transport.close()
        else:
            self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._greeting)
        if self._closed:
            transport.close()
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            self._ended(self._reason if exc is None else str(exc))

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(received, start)
            end = start + _FRAME.size + (high << 16 | low)
            if len(received) < end:
                break
            self._frame(kind, flags, stream, received[start + _FRAME.size : end])
            start = end
        del received[:start]
        self._hand_over()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind == _DATA:
            self._credit += len(payload)
            self._messages += payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, _CONNECTION, payload))
        elif kind == _WINDOW_UPDATE:
            self._window[stream] += int.from_bytes(payload, "big")
            self._send()
        # A server that goes away names the last stream that it still answers.
        gone = kind == _GO_AWAY and int.from_bytes(payload[:4], "big") < _CALL
        if gone or kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            self.fail("the server ended the call")

    def _hand_over(self) -> None:
        """All messages that are complete, together."""
        buffer, complete, start = self._messages, list[bytes](), 0
        while len(buffer) - start >= _MESSAGE.size:
            _, size = _MESSAGE.unpack_from(buffer, start)
            end = start + _MESSAGE.size + size
            if len(buffer) < end:
                break
            complete.append(bytes(buffer[start + _MESSAGE.size : end]))
            start = end
        del buffer[:start]
        if self._credit >= _CREDIT:
            told = self._credit.to_bytes(4, "big")
            self._write(_frame(_WINDOW_UPDATE, 0, _CONNECTION, told) + _frame(_WINDOW_UPDATE, 0, _CALL, told))
            self._credit = 0
        if complete and not self._closed:
            self._read(complete)

    def _settings(self, payload: bytearray) -> None:
        for key, value in struct.iter_unpack(">HL", payload):
            if key == _INITIAL_WINDOW_SIZE:
                self._window[_CALL] += value - self._initial_window
                self._initial_window = value
            elif key == _MAX_FRAME_SIZE:
                self._frame_size = value
        self._write(_frame(_SETTINGS, _ACK, _CONNECTION, b""))
        self._send()

    def _send(self) -> None:
        while self._unsent and self._transport is not None:
            size = min(len(self._unsent), self._frame_size, *self._window.values())
            if size <= 0:
                break
            self._write(_frame(_DATA, 0, _CALL, self._unsent[:size]))
            del self._unsent[:size]
            for stream in self._window:
                self._window[stream] -= size
        if self._ending and not self._unsent and self._transport is not None:
            self._ending = False
            self._write(_frame(_DATA, _END_STREAM, _CALL, b""))

    def _write(self, frames: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frames)


def _frame(kind: int, flags: int, stream: int, payload: bytes | bytearray) -> bytes:
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def _greeting(address: str, method: str) -> bytes:
    """The preface, windows as large as they can be, and the headers of the call."""
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": method.encode(),
        b":authority": address.encode(),
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _frame(_SETTINGS, 0, _CONNECTION, struct.pack(">HL", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)),
            _frame(_WINDOW_UPDATE, 0, _CONNECTION, (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")),
            _frame(_HEADERS, _END_HEADERS, _CALL, b"".join(_literal(*header) for header in headers.items())),
        )
    )


def _literal(name: bytes, value: bytes) -> bytes:
    """A header by itself, as in RFC 7541, 6.2.2. Neither has more than 126 bytes."""
    return bytes((0, len(name))) + name + bytes((len(value),)) + value
