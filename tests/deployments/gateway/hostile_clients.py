"""Clients that want a gateway to end, in a process of their own: `python -m … WHAT HTTP_PORT GRPC_PORT SECONDS`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.deployments.gateway.house import MODEL, post
from tests.deployments.gateway.test_grpc_door import inputs

triton: Any = importlib.import_module("tritonclient.grpc.aio")

PATH = f"/v2/models/{MODEL}/generate"
CHUNKED = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
LARGE = json.dumps({"text_input": "large", "max_tokens": 4, "stream": True}).encode()
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS
MIB = 1 << 20


class Clients:
    """They go on until `until`, on the monotonic clock."""

    def __init__(self, http: int, grpc: int, seconds: float) -> None:
        self.http = http
        self.grpc = grpc
        self.until = time.monotonic() + seconds
        self.connections = 0
        self._tasks: list[asyncio.Future[None]] = []

    async def heads(self) -> None:
        """Two hundred heads, a byte at a time."""
        await self._many(
            200, lambda: self._drip(f"GET /ready HTTP/1.1\r\nHost: localhost\r\nX-Slow: {'x' * 900}".encode())
        )

    async def bodies(self) -> None:
        """Two hundred bodies, a byte at a time."""
        head = post(PATH, b"x" * MIB)[:-MIB]
        await self._many(200, lambda: self._drip(b"x" * 1000, head))

    async def chunks(self) -> None:
        """Bodies of 600,000 chunks of a byte, four at once."""
        await self._many(4, lambda: self._send(CHUNKED, b"1\r\nx\r\n" * 10_000, 60))

    async def large(self) -> None:
        """Bodies of 100 MB, eight at once; half of them do not say so before."""
        said = post(PATH, b"")[:-2].replace(b"Length: 0", b"Length: 104857600") + b"\r\n"
        chunk = f"{MIB:x}\r\n".encode() + b"x" * MIB + b"\r\n"
        await self._many(4, lambda: self._send(said, b"x" * MIB, 100))
        await self._many(4, lambda: self._send(CHUNKED, chunk, 100))

    async def idle(self) -> None:
        """A thousand connections over HTTP, and as many over gRPC, that say nothing."""
        await self._many(1000, lambda: self._send(b"", b"", 0, self.http))
        await self._many(1000, lambda: self._send(HTTP2, b"", 0, self.grpc))

    async def mute(self) -> None:
        """Sixteen streams of 100 MB over HTTP and over gRPC each whose client reads nothing."""
        path = f"/v2/models/{MODEL}/generate_stream"
        await self._many(16, lambda: self._send(post(path, LARGE), b"", 0))
        await self._many(16, self._stream)

    async def _many(self, count: int, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks += [asyncio.ensure_future(self._again(work)) for _ in range(count)]

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < self.until:
            self.connections += 1
            with contextlib.suppress(OSError):
                await work()
            await asyncio.sleep(0.05)

    async def _drip(self, slowly: bytes, head: bytes = b"") -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http)
        try:
            writer.write(head)
            for byte in slowly:
                if time.monotonic() > self.until or reader.at_eof():
                    return
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)
        finally:
            writer.transport.abort()

    async def _send(self, head: bytes, piece: bytes, times: int, port: int = 0) -> None:
        """Send all that, read nothing, and stay until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.http, limit=1024)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.until - time.monotonic()):
                writer.write(head)
                for _ in range(times):
                    writer.write(piece)
                    await writer.drain()
                if not times:
                    await asyncio.Event().wait()
                while await reader.read(1024):
                    pass
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()

    async def _stream(self) -> None:
        async with triton.InferenceServerClient(f"127.0.0.1:{self.grpc}") as client:

            async def requests() -> Any:
                yield {"model_name": MODEL, "inputs": inputs("large")}

            _ = client.stream_infer(requests())
            await asyncio.sleep(max(0.0, self.until - time.monotonic()))


async def _run(what: str, http: str, grpc: str, seconds: str) -> int:
    clients = Clients(int(http), int(grpc), float(seconds))
    attacks: Mapping[str, Callable[[], Awaitable[None]]] = {
        each.__name__: each
        for each in (clients.heads, clients.bodies, clients.chunks, clients.large, clients.idle, clients.mute)
    }
    await attacks[what]()
    await clients.end()
    print(clients.connections)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(*sys.argv[1:])))
