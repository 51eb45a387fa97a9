"""A TCP proxy before an S3 server that does, once a number of bytes has passed, what networks and servers do."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["reset", "cut", "slow-down", "delay"]

_ANSWER = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
)


@dataclass
class Proxy:
    """Passes everything on. After `after` more bytes, both ways together, `fault` happens `times` times.

    `reset` ends a connection with a TCP reset, `cut` closes it in the midst of an answer, `slow-down` answers a request
    with 503 and the code SlowDown, and `delay` holds everything for up to a second.
    """

    upstream: int
    listener: socket.socket
    seed: random.Random
    fault: Fault | None = None
    after: int = 0
    times: int = 0
    happened: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def arm(self, fault: Fault, after: int, times: int) -> None:
        with self._lock:
            self.fault, self.after, self.times, self.happened = fault, after, times, 0

    def heal(self) -> None:
        with self._lock:
            self.fault = None

    def _due(self, passed: int, *faults: Fault) -> bool:
        """Whether one of `faults` is to happen now."""
        with self._lock:
            self.after -= passed
            if self.fault not in faults or self.after > 0 or self.happened == self.times:
                return False
            self.happened += 1
            return True

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if self._due(0, "slow-down"):
            with client, contextlib.suppress(OSError):
                _read_request(client)
                client.sendall(_SLOW_DOWN % (len(_ANSWER), _ANSWER))
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.upstream))
        except OSError:
            client.close()
            return
        with client, server, contextlib.suppress(OSError):
            # One thread for both ways: a socket that another thread reads from would not be gone when it is closed.
            while ready := select.select((client, server), (), ())[0]:
                for source in ready:
                    if not self._pass_on(source, server if source is client else client, answers=source is server):
                        return

    def _pass_on(self, source: socket.socket, sink: socket.socket, *, answers: bool) -> bool:
        """Whether the connection goes on."""
        data = source.recv(1 << 16)
        if self._due(len(data), "delay"):
            time.sleep(self.seed.uniform(0.1, 1.0))
        if self._due(0, "slow-down"):
            return False  # its requests come again, on a connection that is answered so
        if self._due(0, "reset"):
            for end in (source, sink):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if answers and self._due(0, "cut"):
            sink.sendall(data[: len(data) // 2])
            return False
        sink.sendall(data)
        return bool(data)


def _read_request(client: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    if b"100-continue" in head.lower():
        return  # its body waits for our word, which is no
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    missing = int(lengths[0]) - len(body) if lengths else 0
    while missing > 0 and (more := client.recv(1 << 16)):
        missing -= len(more)


@contextlib.contextmanager
def proxy_before(port: int, seed: random.Random) -> Generator[Proxy]:
    """A proxy on a free port of 127.0.0.1 before `port`, ended with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(port, listener, seed)
        thread = threading.Thread(target=proxy.serve, daemon=True)
        thread.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
