"""A gateway with both of its servers on loopback, before stand-ins of nodes, in an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from deployments.gateway.front import Front
from deployments.gateway.keys import Keys
from deployments.gateway.places import Node
from deployments.gateway.serve import Gateway, Options
from deployments.gateway.state import Known, TargetState, Watch
from tasks.triton.placement import release_names
from tests.deployments.gateway.fake_node import FakeNode
from tests.waiting import wait

_T = TypeVar("_T")
MODEL = "tiny"


class Told(Watch):
    """Knows what a test says, as if it had been read from a store."""

    def __init__(self) -> None:
        super().__init__([])
        self.told = Known()
        self.told_at = 0.0

    @property
    def known(self) -> Known:
        if self.told.reading and time.monotonic() - self.told_at > 0.2:
            self.tell(*self.told.targets)  # the store says the same again
        return self.told

    def hurry(self) -> None:
        self.told_at = 0.0

    def tell(self, *targets: TargetState) -> None:
        self.told, self.told_at = Known(targets, self.told.reading + 1), time.monotonic()


def node(
    name: str,
    grpc: str,
    public: Mapping[str, int],
    held: Mapping[str, Sequence[int]] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Node:
    """A report in which each public release is ready, and those that are `held` beside; `aliases` with their models."""
    ready = {model: frozenset((number, *(held or {}).get(model, ()))) for model, number in public.items()}
    return Node("test", name, grpc, ready, dict(public), dict(aliases or {}))


@dataclass
class House:
    watch: Told
    gateway: Gateway
    front: Front
    loop: asyncio.AbstractEventLoop
    nodes: dict[str, FakeNode] = field(default_factory=dict[str, FakeNode])
    serving: concurrent.futures.Future[None] | None = None

    def run(self, work: Coroutine[Any, Any, _T], seconds: float = 30) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def add_node(self, name: str, *, release: int = 1, port: int = 0, **options: Any) -> FakeNode:
        made = FakeNode({MODEL, *release_names(MODEL, release).values()}, **options)
        self.run(made.start(port))
        self.nodes[name] = made
        return made

    def public(self, release: int = 1, *, on: Mapping[str, int] | None = None, model: str = MODEL) -> None:
        """The release is public, and answers on all nodes, or as `on` says."""
        answering = dict.fromkeys(self.nodes, release) if on is None else on
        nodes = tuple(node(name, self.nodes[name].grpc, {model: number}) for name, number in answering.items())
        self.watch.tell(TargetState("test", {model: release}, nodes))

    def let_go(self) -> None:
        """Whatever nodes were asked to hold is answered to its end."""
        for each in self.nodes.values():
            self.loop.call_soon_threadsafe(each.let_go.set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.gateway.grpc_port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def generate(self, prompt: str, *, model: str = MODEL, headers: Mapping[str, str] | None = None) -> httpx.Response:
        with self.client() as client:
            body = {"text_input": prompt, "max_tokens": 4}
            return client.post(f"/v2/models/{model}/generate", json=body, headers=headers)

    def stream(self, prompt: str, headers: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        with self.client() as client:
            body = {"text_input": prompt, "max_tokens": 4, "stream": True}
            answer = client.post(f"/v2/models/{MODEL}/generate_stream", json=body, headers=headers)
        return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.gateway.http_port), timeout=20)


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """A request as bytes, of which a test sends as much as it likes."""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def until(condition: Callable[[], bool], what: str, seconds: float = 10) -> float:
    """Wait until the condition holds; returns the seconds that it took."""
    return wait(condition, what, seconds, every_s=0.005)


@contextlib.contextmanager
def house(
    *,
    watch: Watch | None = None,
    keys: Keys | None = None,
    options: Options | None = None,
    front: Mapping[str, Any] | None = None,
) -> Generator[House]:
    """With a `watch` the gateway goes by that, and no more by what a test says."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway", daemon=True)
    thread.start()
    told = Told()

    async def make() -> House:
        made = Front(watch or told, keys or Keys(None), **(front or {}))
        return House(told, Gateway(made, options or Options()), made, loop)

    made = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    serving = made.serving = asyncio.run_coroutine_threadsafe(made.gateway.run(), loop)
    try:
        until(lambda: made.gateway.started.is_set() or serving.done(), "gateway")
        yield made
    finally:
        loop.call_soon_threadsafe(made.gateway.end)
        serving.result(60)
        for each in made.nodes.values():
            made.run(each.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
