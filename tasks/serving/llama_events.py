"""What llama.cpp says of one completion: its HTTP stream of server-sent events, read on the event loop.

A connection that is closed before its end frees the slot, or the place in the queue for one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .engine import EngineFailed
from .llama_server import CONTROL_TIMEOUT_S, LlamaServer, refusal

_READ_BYTES = 1 << 16

Event = Mapping[str, Any]


async def events(server: LlamaServer, path: str, body: Mapping[str, Any]) -> AsyncGenerator[list[Event]]:
    """All events that have come, as often as some have. Raises RequestRefused, EngineFailed and OSError."""
    async with asyncio.timeout(CONTROL_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(*server.address)
    try:
        writer.write(server.request(path, json.dumps(body).encode()))
        status, headers = await _head(reader)
        if status != 200:
            raise refusal(status, await reader.readexactly(int(headers["content-length"])))
        chunks, lines = _Chunks(), _Lines()
        while not chunks.ended:
            if not (data := await reader.read(_READ_BYTES)):
                raise OSError("the stream ended before the answer")
            if found := [_event(line) for line in lines.feed(chunks.feed(data)) if _is_event(line)]:
                yield found
    finally:
        writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError as error:
        raise OSError("it closed the connection before its answer") from error
    headers = (line.partition(":") for line in lines[1:])
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in headers}


class _Chunks:
    """The body of a chunked answer (RFC 9112, 7.1), from its bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        body = bytearray()
        while not self.ended and (end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:end].partition(b";")[0], 16)
            whole = end + 2 + size + 2
            if len(self._buffer) < whole:
                break
            body += self._buffer[end + 2 : whole - 2]
            del self._buffer[:whole]
            self.ended = size == 0
        return bytes(body)


class _Lines:
    """Whole lines of a text, from its bytes as they come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def _is_event(line: bytes) -> bool:
    return line.startswith((b"data:", b"error:"))


def _event(line: bytes) -> Event:
    event = json.loads(line.partition(b":")[2])
    if "error" in event:
        raise EngineFailed(f"llama.cpp failed: {event['error'].get('message')}")
    return event
