"""How the processes of one `llm` tell each other things. Triton has a process for each instance of a model.

Each listens on an abstract Unix socket and connects to all others. Such a name is no file, and the kernel frees it with
its process: so nothing stays behind, and the end of a connection is the end of a process. A message is a line of JSON.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import secrets
import socket
import struct
from contextlib import suppress
from typing import Any, Protocol, cast

MOST = 128
"""Processes of one model at a time, those of a load that still ends included. Each has one of so many numbers."""

_HELLO, _LEAVING = "hello", "leaving"
_HELLO_SECONDS = 5.0
"""For another one to say which process it is. Its loop has nothing else to do while the model is loaded."""
_CREDENTIALS = struct.Struct("3i")


def scope_of(model_folder: str) -> str:
    """What the processes of one model have in common: its folder in the repository, and the Triton that runs them."""
    return hashlib.sha256(f"{model_folder} {os.getppid()}".encode()).hexdigest()[:32]


class Hearer(Protocol):
    """Who is told, on the event loop, by the `number` of a process."""

    def heard(self, number: int, kind: str, value: Any) -> None: ...

    def gone(self, number: int) -> None:
        """That process has ended, or has said that it will."""
        ...


class Peers:
    """All processes with the same `scope`, as one of them sees them; `instance` is its place among those of one load.

    All but the constructor is called on one event loop.
    """

    def __init__(self, scope: str, instance: int) -> None:
        self.number = -1
        self.lost: set[int] = set()
        """Instances whose process died without leaving, and that no other process has taken up since."""
        self._scope = scope
        self._instance = instance
        self._token = secrets.token_hex(8)
        self._hearer: Hearer | None = None
        self._known: dict[int, _Link] = {}
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def open(self, hearer: Hearer) -> None:
        """Take a number and meet those who are there. Those who come later will do the same. Raises OSError."""
        self._hearer = hearer
        loop = asyncio.get_running_loop()
        bound = self._bind()
        self._server = await loop.create_unix_server(lambda: _Link(self), sock=bound)
        met: list[_Link] = []
        for number in range(MOST):
            if number != self.number:
                with suppress(OSError):
                    _, link = await loop.create_unix_connection(lambda: _Link(self), self._name(number))
                    met.append(link)
        with suppress(TimeoutError):
            async with asyncio.timeout(_HELLO_SECONDS):
                for link in met:
                    await link.met.wait()

    def tell(self, number: int, kind: str, value: Any) -> bool:
        """Whether there is such a process to be told; never this one."""
        link = self._known.get(number)
        if link is not None:
            link.write(kind, value)
        return link is not None

    def tell_all(self, kind: str, value: Any) -> None:
        for link in self._known.values():
            link.write(kind, value)

    async def close(self) -> None:
        """Say that this process leaves, and let go of all."""
        self.tell_all(_LEAVING, None)
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.close()
        # What closes a connection is done in the loop's next turn.
        await asyncio.sleep(0)

    def hello(self) -> tuple[str, list[Any]]:
        return _HELLO, [self.number, self._instance, self._token]

    def linked(self, link: _Link) -> None:
        self._links.add(link)

    def hear(self, link: _Link, kind: str, value: Any) -> None:
        if kind == _HELLO:
            link.number, link.instance, link.token = value
            self._meet(link)
        elif kind == _LEAVING:
            link.leaving = True
            self._lose(link)
        elif self._hearer is not None and link.number is not None:
            self._hearer.heard(link.number, kind, value)

    def unlinked(self, link: _Link) -> None:
        self._links.discard(link)
        self._lose(link)

    def _meet(self, link: _Link) -> None:
        number = cast(int, link.number)
        known = self._known.get(number)
        if known is not None and known.token != link.token:
            # It has the number of one that died, of which the end comes behind.
            self._lose(known)
        # Two that start at the same time connect to each other twice.
        self._known.setdefault(number, link)
        self.lost.discard(link.instance)

    def _lose(self, link: _Link) -> None:
        if link.number is None or self._known.get(link.number) is not link:
            return
        del self._known[link.number]
        if not link.leaving and all(other.instance != link.instance for other in self._known.values()):
            self.lost.add(link.instance)
        if self._hearer is not None:
            self._hearer.gone(link.number)

    def _bind(self) -> socket.socket:
        for number in range(MOST):
            bound = socket.socket(socket.AF_UNIX)
            try:
                bound.bind(self._name(number))
            except OSError as error:
                bound.close()
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                self.number = number
                return bound
        raise OSError(errno.EADDRINUSE, f"{MOST} processes of this model are running")

    def _name(self, number: int) -> str:
        return f"\0enginehouse-llm-{self._scope}-{number}"


class _Link(asyncio.Protocol):
    """A connection to another process."""

    def __init__(self, peers: Peers) -> None:
        self.number: int | None = None
        self.instance = -1
        self.token = ""
        self.leaving = False
        self.met = asyncio.Event()
        self._peers = peers
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if _user_of(transport.get_extra_info("socket")) != os.geteuid():
            # An abstract name has no permissions: anybody on the machine may connect to it, or take it first.
            self._transport.abort()
            return
        self._peers.linked(self)
        self.write(*self._peers.hello())

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            kind, value = json.loads(line)
            self._peers.hear(self, kind, value)
            self.met.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.met.set()
        self._peers.unlinked(self)

    def write(self, kind: str, value: Any) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps([kind, value]).encode() + b"\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _user_of(connected: socket.socket) -> int:
    """The user id of the process at the other end, at the time it connected or began to listen."""
    packed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(packed)
    return user
