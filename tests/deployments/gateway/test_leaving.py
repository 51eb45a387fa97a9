"""Clients that leave a model of two slots, by each way into the gateway: their slots are free at once.

Asked through an ensemble, Triton 2.51 would go on with their answers to the end.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from deployments.gateway.state import TargetState
from tasks.triton.placement import place_release, placed_models, write_public
from tests.conftest import RunningTriton
from tests.deployments.gateway.house import House, house, node, until
from tests.deployments.gateway.test_grpc_door import Stream, inputs, triton
from tests.tasks.kinds.served_kinds import KINDS, Role

pytestmark = pytest.mark.slow

MODEL = "story"
SHORT: Mapping[str, Any] = {"text_input": "Say hi", "max_tokens": 4}
TOKENS = 460
_ROUNDS = 3
"""Of a measurement that other processes of the machine may spoil: a slot that is not free is not in any of them."""


class Stack:
    """A Triton with one model of two slots in two releases, and a gateway before it.

    To `long` the model says more than it is let. `chats`: it has a chat template.
    """

    def __init__(self, triton: RunningTriton, gateway: House, *, long: str, chats: bool) -> None:
        self.triton = triton
        self.gateway = gateway
        self.long = long
        self.chats = chats

    def load(self, release: int) -> None:
        for name in placed_models(self.triton.repository, MODEL, release):
            self.triton.client.load(name)

    def promote(self, release: int) -> None:
        write_public(self.triton.repository, MODEL, release)
        self.triton.client.load(MODEL)

    def tell(self, release: int) -> None:
        """What a node reports once it has moved."""
        found = node("one", self.triton.client.grpc, {MODEL: release})
        self.gateway.watch.tell(TargetState("test", {MODEL: release}, (found,)))

    def unload(self, release: int, seconds: float = 20) -> float:
        """As a node does it; returns how long it took."""
        names = placed_models(self.triton.repository, MODEL, release)
        for name in reversed(names):
            self.triton.client.unload(name)

        def gone() -> bool:
            found = {each.name: each.state for each in self.triton.client.index()}
            return not any(found.get(name) in ("READY", "UNLOADING") for name in names)

        return until(gone, f"end of release {release}", seconds)

    def short(self) -> float:
        """The seconds of a short request."""
        with self.gateway.client() as client:
            began = time.monotonic()
            assert client.post(f"/v2/models/{MODEL}/generate", json=SHORT).status_code == 200
            return time.monotonic() - began

    def idle(self) -> float:
        return statistics.median(self.short() for _ in range(3))


@pytest.fixture(scope="module", params=["trt-engine-1.2.1", "llamacpp"])
def stack(
    request: pytest.FixtureRequest,
    start_triton: Callable[[str], RunningTriton],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    kind, chats = KINDS[request.param](request), request.param == "llamacpp"
    started = start_triton(f"leaving-{kind.name}")
    for release in (1, 2):
        folder = tmp_path_factory.mktemp(f"release-{release}")
        artifact, engine = folder / "artifact", folder / "engine"
        artifact.mkdir()
        engine.mkdir()
        kind.write(artifact, engine, Role(2, 1024, chats, 60.0, greedy=True))
        place_release(artifact, engine, started.repository, MODEL, release, grpc=started.client.grpc)
    started.wait_live()
    long = "Write a very long story about a lighthouse keeper and the sea." if chats else "1 2 3 4 5 6 7 8 9 1 2 3"
    with house() as gateway:
        made = Stack(started, gateway, long=long, chats=chats)
        made.load(1)
        made.promote(1)
        made.tell(1)
        yield made


def generate_stream(stack: Stack) -> None:
    body = {"text_input": stack.long, "max_tokens": TOKENS, "stream": True}
    drop(stack, f"/v2/models/{MODEL}/generate_stream", body, lambda piece: piece["text_output"])


def openai(stack: Stack) -> None:
    body: dict[str, Any] = {"model": MODEL, "max_tokens": TOKENS, "stream": True}
    if stack.chats:
        body["messages"] = [{"role": "user", "content": stack.long}]
        drop(stack, "/v1/chat/completions", body, lambda piece: piece["choices"][0]["delta"].get("content"))
    else:
        body["prompt"] = stack.long
        drop(stack, "/v1/completions", body, lambda piece: piece["choices"][0]["text"])


def drop(stack: Stack, path: str, body: Mapping[str, Any], said: Callable[[Any], str | None]) -> None:
    """Read an answer up to its first piece that says something, and leave."""
    with stack.gateway.client() as client, client.stream("POST", path, json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        pieces = (json.loads(line[6:]) for line in answer.iter_lines() if line)
        assert any(said(piece) for piece in pieces)


def grpc_stream(stack: Stack) -> None:
    client = triton.InferenceServerClient(stack.gateway.grpc)
    stream = Stream(client)
    client.async_stream_infer(MODEL, inputs(stack.long, max_tokens=TOKENS, stream=True))
    assert stream.texts(1)
    client.stop_stream(cancel_requests=True)
    client.close()


def unary(stack: Stack) -> None:
    """Leave in the middle of an answer that comes as one."""
    body = {"text_input": stack.long, "max_tokens": TOKENS}
    with suppress(httpx.ReadTimeout), stack.gateway.client() as client:
        client.post(f"/v2/models/{MODEL}/generate", json=body, timeout=0.5)


@pytest.mark.parametrize("leave", [generate_stream, openai, grpc_stream, unary], ids=lambda leave: leave.__name__)
def test_two_dropped_streams_free_both_slots(stack: Stack, leave: Callable[[Stack], None]) -> None:
    for _ in range(_ROUNDS):
        idle = stack.idle()
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(leave, stack) for _ in range(2)]:
                done.result(60)
        after = stack.short()
        print(f"\n{leave.__name__}: idle {idle:.2f} s, after two dropped streams {after:.2f} s")
        if after < idle + max(1.0, idle):  # of a machine so busy that it takes more than a second, twice as much
            return
    pytest.fail("the slots were not free")


def test_who_waits_for_a_slot_and_leaves_never_gets_one(stack: Stack) -> None:
    running = threading.Semaphore(0)

    def hold(_: int) -> int:
        body = {"text_input": stack.long, "max_tokens": 300, "stream": True}
        path = f"/v2/models/{MODEL}/generate_stream"
        with stack.gateway.client() as client, client.stream("POST", path, json=body) as answer:
            pieces = 0
            for line in answer.iter_lines():
                pieces += line.startswith("data: ")
                if pieces == 1 and line:
                    running.release()
            return pieces

    with ThreadPoolExecutor(6) as pool:
        holders = [pool.submit(hold, number) for number in range(2)]
        assert all(running.acquire(timeout=60) for _ in holders)
        for waiting in [pool.submit(unary, stack) for _ in range(4)]:
            waiting.result(30)
        assert all(holder.result(60) > 100 for holder in holders)
        after = stack.short()
    print(f"\nafter four that left while they waited: {after:.2f} s")
    # Had one of the four got a slot, its hundreds of tokens would take several seconds.
    assert after < stack.idle() + 2.5


def test_a_request_that_waits_is_answered_by_the_release_that_took_it(stack: Stack) -> None:
    """Promoted and unloaded while two run and one waits: all three are answered, and only then the release ends."""
    stack.load(2)
    got: list[httpx.Response] = []

    def ask(tokens: int) -> None:
        with stack.gateway.client() as client:
            body = {"text_input": stack.long, "max_tokens": tokens}
            got.append(client.post(f"/v2/models/{MODEL}/generate", json=body))

    threads = [threading.Thread(target=ask, args=(tokens,)) for tokens in (120, 120, 20, 20)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    stack.promote(2)
    seconds = stack.unload(1, 60)
    ended = len(got)
    late = stack.short()  # the gateway still believes in release 1
    stack.tell(2)
    for thread in threads:
        thread.join(60)
    print(f"\nunloaded after {seconds:.2f} s; a request of then took {late:.2f} s")
    assert [answer.status_code for answer in got] == [200] * 4
    assert ended == 4, "Triton unloads a release once its last request has ended"


def test_a_release_is_unloaded_after_many_cancellations(stack: Stack) -> None:
    """Triton 2.51 never unloads a model of which a request was cancelled that had just ended."""
    stack.load(1)
    stack.promote(1)
    stack.tell(1)
    whole = stack.short()
    seed = random.randrange(1 << 30)
    print(f"\nseed {seed}")
    moments = random.Random(seed)

    def leave(by_grpc: bool, seconds: float) -> None:
        if by_grpc:
            client = triton.InferenceServerClient(stack.gateway.grpc)
            Stream(client)
            client.async_stream_infer(MODEL, inputs("Say hi", stream=True))
            time.sleep(seconds)
            client.stop_stream(cancel_requests=True)
            client.close()
        else:
            with suppress(httpx.ReadTimeout), stack.gateway.client() as client:
                client.post(f"/v2/models/{MODEL}/generate", json=dict(SHORT), timeout=seconds)

    with ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(leave, bool(number % 2), max(0.001, moments.uniform(0, 1.5 * whole))) for number in range(200)
        ]:
            done.result(60)
    stack.load(2)
    stack.promote(2)
    stack.tell(2)
    seconds = stack.unload(1)
    print(f"200 left at random moments of {1.5 * whole:.2f} s; unloaded in {seconds:.2f} s")
    assert stack.short() < 5
