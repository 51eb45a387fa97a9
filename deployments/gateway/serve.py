"""The gateway as a process: its two servers, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import ipaddress
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.routing import BaseRoute

from deployments.gateway.app import application
from deployments.gateway.bodies import BODY_SECONDS, MEMORY_BYTES, Bodies
from deployments.gateway.connections import HEAD_BYTES, HEAD_SECONDS, LINGER_SECONDS, Connections
from deployments.gateway.front import Front, Traced, untraced
from deployments.gateway.grpc_door import STREAM_SECONDS, GrpcLimits, grpc_server
from deployments.gateway.keys import Keys
from deployments.gateway.openai_routes import openai_routes
from deployments.gateway.state import Watch
from deployments.gateway.triton_routes import triton_routes
from infra.errors import SettingsError
from infra.s3.bucket import Bucket
from infra.settings import Settings
from infra.traces.collector import collector_url, require_sdk
from infra.triton.command import EXIT_TIMEOUT_S
from tasks.targets.target import Target

grpc: Any = importlib.import_module("grpc")

_KEEP_ALIVE_SECONDS = 30
_OTHER_FILES = 256
"""File descriptors for what is no client's connection over HTTP: nodes, the store, logs."""
_NOTE_SECONDS = 1.0
_LAST_SECONDS = 2
"""For the errors of what was cut off to reach their clients."""

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

Routes = Callable[[Front, Bodies], Iterable[BaseRoute]]
"""The routes of one protocol."""
PROTOCOLS: tuple[Routes, ...] = (triton_routes, openai_routes)

_log = logging.getLogger("enginehouse.gateway")


@dataclass(frozen=True)
class Options:
    """Where and how the servers listen. `certificate` and `key` are files in PEM form, or both empty; port 0 is any."""

    address: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    certificate: str = ""
    key: str = ""
    body_bytes: int = 8 << 20
    requests: int = 1000
    grace_s: float = EXIT_TIMEOUT_S
    connections: int = 4096
    """Over HTTP, and as many over gRPC; fewer where the process may not have so many files open."""
    bodies_bytes: int = MEMORY_BYTES
    """Of all requests over HTTP together."""
    head_s: float = HEAD_SECONDS
    body_s: float = BODY_SECONDS
    linger_s: float = LINGER_SECONDS
    stream_s: float = STREAM_SECONDS

    @classmethod
    def of(cls, settings: Settings) -> Options:
        """Raises SettingsError, code `gateway-open`, `gateway-tls`, or `settings` for an address without a port."""
        if not settings.gateway_keys and not settings.gateway_open and not _is_loopback(settings.gateway_address):
            raise SettingsError(
                f"without keys the gateway would answer everybody who reaches {settings.gateway_address}",
                hint="set ENGINEHOUSE_GATEWAY_KEYS, or ENGINEHOUSE_GATEWAY_OPEN=true if that is meant",
                code="gateway-open",
            )
        if bool(settings.gateway_certificate) != bool(settings.gateway_certificate_key):
            raise SettingsError(
                "TLS needs ENGINEHOUSE_GATEWAY_CERTIFICATE and ENGINEHOUSE_GATEWAY_CERTIFICATE_KEY", code="gateway-tls"
            )
        return cls(
            address=settings.gateway_address,
            http_port=_port(settings.gateway_http, 8080),
            grpc_port=_port(settings.gateway_grpc, 8081),
            certificate=settings.gateway_certificate,
            key=settings.gateway_certificate_key,
            body_bytes=settings.gateway_body_bytes,
            requests=settings.gateway_requests,
            grace_s=settings.gateway_grace_seconds,
        )


class _Server(uvicorn.Server):
    """uvicorn's server without its own signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class Gateway:
    """Both servers over one front."""

    def __init__(self, front: Front, options: Options, routes: Iterable[Routes] = PROTOCOLS) -> None:
        self._front = front
        self._options = options
        bodies = Bodies(options.body_bytes, memory=options.bodies_bytes, patience_s=options.body_s)
        # Beyond loopback nobody knows the names; with keys a foreign page has none.
        names = _LOOPBACK_NAMES if _is_loopback(options.address) and not front.keys_required else ()
        self._application = application(front, [route for each in routes for route in each(front, bodies)], names)
        self.http_port = self.grpc_port = 0
        """Known once `started`."""
        self.started = asyncio.Event()
        self._end = asyncio.Event()

    def end(self) -> None:
        """Begin to end: running answers have their time."""
        self._end.set()

    async def run(self) -> None:
        """Serve until `end`. Raises SettingsError, code `port-taken`, `gateway-tls`."""
        options = self._options
        most = _most_connections(options.connections)
        connections = Connections(most, head_s=options.head_s, linger_s=options.linger_s)
        limits = GrpcLimits(options.body_bytes, 2 * options.requests, most, options.body_s, options.stream_s)
        rpc = grpc_server(self._front, limits)
        listener = _listen(options.address, options.http_port)
        self.http_port = listener.getsockname()[1]
        self.grpc_port = self._bind_grpc(rpc)
        http = _Server(self._uvicorn(connections))
        serving = asyncio.ensure_future(http.serve(sockets=[listener]))
        await rpc.start()
        noting = asyncio.ensure_future(self._note())
        self.started.set()
        _log.info("answering at %s, HTTP %d and gRPC %d", options.address, self.http_port, self.grpc_port)
        ending = asyncio.ensure_future(self._end.wait())
        try:
            await asyncio.wait((ending, serving), return_when=asyncio.FIRST_COMPLETED)
            _log.info("ending: running answers have %g s", options.grace_s)
            await self._front.drain(options.grace_s)
        finally:
            noting.cancel()
            ending.cancel()
            http.should_exit = True
            await asyncio.gather(serving, rpc.stop(_LAST_SECONDS), return_exceptions=True)
            await self._front.close()

    def _uvicorn(self, connections: Connections) -> uvicorn.Config:
        options = self._options
        return uvicorn.Config(
            self._application,
            http=connections.protocol(),  # pyright: ignore[reportArgumentType]
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_SECONDS,
            h11_max_incomplete_event_size=HEAD_BYTES,
            ssl_certfile=options.certificate or None,
            ssl_keyfile=options.key or None,
        )

    def _bind_grpc(self, server: Any) -> int:
        options = self._options
        where = f"[{options.address}]" if ":" in options.address else options.address
        where = f"{where}:{options.grpc_port}"
        try:
            if not options.certificate:
                return server.add_insecure_port(where)
            pair = _read(options.key), _read(options.certificate)
            return server.add_secure_port(where, grpc.ssl_server_credentials((pair,)))
        except RuntimeError as error:
            raise SettingsError(f"gRPC cannot listen at {where}: {error}", code="port-taken") from error

    async def _note(self) -> None:
        while True:
            self._front.note_state()
            await asyncio.sleep(_NOTE_SECONDS)


def run_gateway(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Raises SettingsError for what is set wrong."""
    options = Options.of(settings)
    bucket = Bucket.at(settings.store)
    targets = [Target(bucket, name) for name in settings.gateway_targets or (settings.target,)]
    watch, keys = Watch(targets), Keys(settings.gateway_keys)
    # Modules are no garbage: looking through all of them would hold up every stream for tens of milliseconds.
    gc.collect()
    gc.freeze()
    with tracing() as traced:
        asyncio.run(_run(settings, options, watch, keys, traced))
    return 0


def main() -> None:
    from infra import settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings.activate()
    run_gateway(settings.load())


@contextlib.contextmanager
def tracing() -> Generator[Traced]:
    """What makes the spans of requests. Without a collector it is nothing, and nothing is imported."""
    url = collector_url(os.environ)
    if not url:
        yield untraced
        return
    require_sdk()
    from deployments.gateway.traces import RequestTraces
    from infra.traces.sending import Sending

    sending = Sending(url, "enginehouse-gateway")
    try:
        yield RequestTraces(sending.provider).traced
    finally:
        sending.end()


async def _run(settings: Settings, options: Options, watch: Watch, keys: Keys, traced: Traced) -> None:
    deadline_s = settings.gateway_deadline_seconds
    front = Front(watch, keys, most_requests=options.requests, deadline_s=deadline_s, traced=traced)
    gateway = Gateway(front, options)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.end)
    watch.start()
    await gateway.run()


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # asyncio turns off the delay of small packets (Nagle) only for sockets that say so: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(f"HTTP cannot listen at {address}:{port}: {error}", code="port-taken") from error
    return listener


def _most_connections(wished: int) -> int:
    """As many as are wished for, and as the process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * wished + _OTHER_FILES
    if resource.RLIM_INFINITY != soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wished
    return max(1, min(wished, (soft - _OTHER_FILES) // 2))


def _port(where: str, default: int) -> int:
    text = where.rpartition(":")[2]
    if where and not text.isdecimal():
        raise SettingsError(
            f"'{where}' has no port", hint="ENGINEHOUSE_GATEWAY_HTTP and ENGINEHOUSE_GATEWAY_GRPC end in :PORT"
        )
    return int(text) if where else default


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error}", code="gateway-tls") from error


if __name__ == "__main__":
    main()
