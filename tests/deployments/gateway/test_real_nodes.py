"""The gateway before real nodes with a real Triton: promotions, killed servers, and answers that are Triton's own.

With ENGINEHOUSE_TEST_ROUNDS=10 there are 30 promotions, 10 rollbacks, 3 candidates that fail and 2 canaries.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.gateway.state import TargetState, Watch
from tasks.triton.config import LLM, RELEASE, instantiate, llm_config, release_config
from tasks.triton.placement import release_names, write_public
from tests.conftest import RunningTriton
from tests.deployments.gateway.house import House, house, node, until
from tests.deployments.gateway.moving import Event, Moving, events
from tests.deployments.gateway.test_grpc_door import Stream
from tests.deployments.node.served import MODEL as PYTHON_MODEL
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

triton_http: Any = importlib.import_module("tritonclient.http")
triton_grpc: Any = importlib.import_module("tritonclient.grpc")
MODEL = "tiny"
ROUNDS = int(os.environ.get("ENGINEHOUSE_TEST_ROUNDS", "1"))
OF_ENSEMBLES = ("sequence_id", "sequence_start", "sequence_end")
"""Triton adds them to what an ensemble answers. The gateway asks the model inside."""


@contextmanager
def before(*nodes: Served, **options: Any) -> Generator[House]:
    """A gateway that reads the nodes' own store."""
    watch = Watch([nodes[0].target])
    watch.start()
    with house(watch=watch, **options) as made:
        yield made


@pytest.fixture
def one(fleet: Fleet, tmp_path: Path) -> Iterator[Served]:
    with served(fleet, tmp_path / "one") as made:
        yield made


@pytest.fixture
def two(fleet: Fleet, tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    with ExitStack() as stack:
        nodes = [stack.enter_context(served(fleet, tmp_path / name, name)) for name in ("one", "two")]
        yield nodes[0], nodes[1]


def ask(gateway: House, text: str = "what", model: str = MODEL) -> httpx.Response:
    return gateway.generate(text, model=model)


def wait_ready(gateway: House, *nodes: Served, release: int) -> None:
    for each in nodes:
        each.wait_for(MODEL, release)
    until(lambda: _nodes_of(gateway) == len(nodes), "gateway that knows the nodes", 30)


def _nodes_of(gateway: House) -> int:
    with gateway.client() as client:
        return client.get("/ready").json()["nodes_by_model"].get(MODEL, 0)


def _inputs(library: Any, text: str) -> list[Any]:
    found: list[Any] = []
    for name, datatype, value in (("text_input", "BYTES", text.encode()), ("max_tokens", "INT32", 4)):
        tensor = library.InferInput(name, [1, 1], datatype)
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_ if datatype == "BYTES" else np.int32))
        found.append(tensor)
    return found


def test_answers_are_those_of_triton(one: Served) -> None:
    one.release(MODEL)
    with before(one) as gateway:
        wait_ready(gateway, one, release=1)
        body = {"text_input": "what", "max_tokens": 4, "id": "9", "stop_words": ["a", "b"], "temperature": 0.5}
        bad = {**body, "max_tokens": 0}
        odd = {**body, "max_tokens": "many"}
        for path in ("generate", "generate_stream"):
            answers: list[tuple[int, str, Any]] = []
            for url in (f"http://127.0.0.1:{one.ports[0]}", gateway.url):
                for each in (body, bad, odd):
                    answer = httpx.post(f"{url}/v2/models/{MODEL}/{path}", json=each, trust_env=False, timeout=30)
                    found = json.loads(answer.text.removeprefix("data: ").strip())
                    for mark in OF_ENSEMBLES:
                        found.pop(mark, None)
                    kind = answer.headers["content-type"]
                    answers.append((answer.status_code, kind, found if answer.status_code == 200 else None))
            assert answers[0] == answers[3], "an answer"
            assert answers[1][0] == answers[4][0] == 400, "what the model refuses"
            assert (answers[2][0], answers[5][0]) == (500, 400), "text for a number, which Triton calls its own fault"
        with gateway.client() as client, httpx.Client(trust_env=False) as direct:
            of_triton = direct.get(f"http://127.0.0.1:{one.ports[0]}/v2/models/{MODEL}").json()
            ours = client.get(f"/v2/models/{MODEL}").json()
        for side in ("inputs", "outputs"):
            shapes = [
                {each["name"]: list(map(int, each["shape"])) for each in found[side]} for found in (of_triton, ours)
            ]
            assert shapes[0] == shapes[1]
        assert (ours["name"], ours["versions"]) == (of_triton["name"], of_triton["versions"])


def test_clients_of_triton_get_unary_answers_over_http_and_grpc(one: Served) -> None:
    one.release(MODEL)
    with before(one) as gateway:
        wait_ready(gateway, one, release=1)
        for library, address in ((triton_http, gateway.url.removeprefix("http://")), (triton_grpc, gateway.grpc)):
            client = library.InferenceServerClient(address)
            assert client.is_server_ready() and client.is_model_ready(MODEL)
            assert client.get_model_metadata(MODEL) is not None and client.get_model_config(MODEL) is not None
            answer = client.infer(MODEL, _inputs(library, "what"), request_id="mine")
            assert answer.as_numpy("text_output").tolist() == [[b"tiny@1"]]
            assert answer.as_numpy("cum_log_probs").tolist() == [[0.0]]
            client.close()


def _generate(gateway: House) -> list[str]:
    answer = ask(gateway)
    return [answer.json()["text_output"]] if answer.status_code == 200 else [answer.text]


def _generate_stream(gateway: House) -> list[str]:
    return [piece.get("text_output", str(piece)) for piece in gateway.stream("count 3 0.05")]


def _model_infer(gateway: House) -> list[str]:
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        return [client.infer(MODEL, _inputs(triton_grpc, "what")).as_numpy("text_output").item().decode()]


def _model_stream_infer(gateway: House) -> list[str]:
    with triton_grpc.InferenceServerClient(gateway.grpc) as client:
        stream = Stream(client)
        client.async_stream_infer(MODEL, _inputs(triton_grpc, "count 3 0.05"))
        return stream.texts(3)


@dataclass
class Asked:
    """What 32 clients have got: seconds, way and pieces of each answer."""

    got: list[tuple[float, str, list[str]]] = field(default_factory=list[tuple[float, str, list[str]]])

    def check(self, *releases: int) -> None:
        """Each was answered, by one of these releases from the first to the last piece."""
        names = {f"{MODEL}@{number}" for number in releases}
        wrong = [(way, answer) for _, way, answer in self.got if len(set(answer)) != 1 or answer[0] not in names]
        assert not wrong, wrong[:5]
        assert {way for _, way, _ in self.got} == {way.__name__ for way in WAYS}
        seconds = sorted(taken for taken, _, _ in self.got)
        print(
            f"\n{len(seconds)} requests, 0 failed; p50 {seconds[len(seconds) // 2]:.2f} s, at most {seconds[-1]:.2f} s"
        )


WAYS = (_generate, _generate_stream, _model_infer, _model_stream_infer)


@contextmanager
def clients(gateway: House) -> Generator[Asked]:
    """32 of them, eight by each way in, until the block ends."""
    asked, stop = Asked(), threading.Event()

    def keep_asking(way: Callable[[House], list[str]]) -> None:
        while not stop.wait(0.1):
            began = time.monotonic()
            try:
                answer = way(gateway)
            except Exception as error:
                answer = [f"{type(error).__name__}: {error}"]
            asked.got.append((time.monotonic() - began, way.__name__, answer))

    threads = [threading.Thread(target=keep_asking, args=(WAYS[number % len(WAYS)],)) for number in range(32)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def test_no_request_is_lost_by_promotions_rollbacks_failures_and_canaries(one: Served) -> None:
    one.release(MODEL)
    with before(one) as gateway:
        wait_ready(gateway, one, release=1)
        moving = Moving(one, gateway.url, MODEL)
        happened: Counter[Event] = Counter()
        moves: list[float] = []
        with clients(gateway) as asked:
            for event in events(ROUNDS):
                if (seconds := moving.does(event)) is not None:
                    moves.append(seconds)
                happened[event] += 1
        released = one.target.releases(MODEL)
        asked.check(*released)
        # A finished request that was cancelled would keep its release loaded for ever. The one before the last stays.
        kept = one.target.current(MODEL)[0].loaded
        gone = [number for number in released if number not in kept]
        one.wait(lambda: not any(one.processes(MODEL, number) for number in gone), "end of old releases")
        moves.sort()
        print(f"{dict(happened)}: followed after {moves[len(moves) // 2]:.2f} s (p50), at most {moves[-1]:.2f} s")
        assert moves[0] < 2.0 * PATIENCE


@pytest.mark.long
def test_no_request_is_lost_by_30_promotions_between_releases_that_are_unloaded_at_once(
    start_triton: Callable[[str], RunningTriton],
) -> None:
    """As a node makes them, without its pauses, and before the gateway hears of them."""
    triton = start_triton("promotions")
    triton.wait_live()
    for number in (1, 2):
        names = release_names(MODEL, number, (LLM, RELEASE))
        for relative, config in ((LLM, llm_config()), (RELEASE, release_config())):
            (triton.repository / names[relative] / "1").mkdir(parents=True)
            (triton.repository / names[relative] / "config.pbtxt").write_text(instantiate(config, names))
        code = PYTHON_MODEL.format(text=f"{MODEL}@{number}", begin="")
        (triton.repository / names[LLM] / "1" / "model.py").write_text(code)

    def promote(number: int) -> None:
        for name in release_names(MODEL, number, (LLM, RELEASE)).values():
            triton.client.load(name)
        write_public(triton.repository, MODEL, number)
        triton.client.load(MODEL)

    def loaded(number: int) -> bool:
        states = {each.name: each.state for each in triton.client.index()}
        return any(states.get(name) in ("READY", "UNLOADING") for name in release_names(MODEL, number).values())

    with house() as gateway:
        promote(1)
        gateway.watch.tell(TargetState("test", {MODEL: 1}, (node("one", triton.client.grpc, {MODEL: 1}),)))
        unloads: list[float] = []
        with clients(gateway) as asked:
            for turn in range(30):
                old, new = 1 + turn % 2, 2 - turn % 2
                promote(new)
                for name in reversed(release_names(MODEL, old, (LLM, RELEASE)).values()):
                    triton.client.unload(name)
                unloads.append(until(lambda old=old: not loaded(old), "end of the old release", 60))
                time.sleep(0.1)
                found = node("one", triton.client.grpc, {MODEL: new})
                gateway.watch.tell(TargetState("test", {MODEL: new}, (found,)))
        asked.check(1, 2)
        print(f"a release is unloaded within {max(unloads):.2f} s")


def test_triton_is_killed_and_whoever_was_told_nothing_is_answered(one: Served) -> None:
    one.release(MODEL)
    with before(one, front={"patience_s": 60.0}) as gateway:
        wait_ready(gateway, one, release=1)
        got: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: got.append(ask(gateway, "wait 1")))
        waiting.start()
        time.sleep(0.4)
        for triton in one.tritons():
            os.kill(triton.pid, signal.SIGKILL)
        waiting.join(90)
        assert got[0].status_code == 200 and got[0].json()["text_output"] == f"{MODEL}@1"


def test_of_two_nodes_one_dies_and_no_request_is_lost(two: tuple[Served, Served]) -> None:
    first, second = two
    number = first.release(MODEL)
    with before(*two) as gateway:
        wait_ready(gateway, *two, release=number)
        got: Counter[int] = Counter()
        stop = threading.Event()

        def keep_asking() -> None:
            with gateway.client() as client:
                while not stop.is_set():
                    body = {"text_input": "wait 0.05", "max_tokens": 1}
                    got[client.post(f"/v2/models/{MODEL}/generate", json=body).status_code] += 1

        askers = [threading.Thread(target=keep_asking) for _ in range(8)]
        for asker in askers:
            asker.start()
        time.sleep(1.0)
        second.end()
        time.sleep(3.0)
        stop.set()
        for asker in askers:
            asker.join(60)
        assert set(got) == {200} and got[200] > 50


def test_a_models_process_dies_under_one_request_and_the_others_are_answered(two: tuple[Served, Served]) -> None:
    number = two[0].release(MODEL)
    with before(*two, front={"patience_s": 30.0}) as gateway:
        wait_ready(gateway, *two, release=number)
        for process in two[0].processes(MODEL, number):
            process.kill()
        assert [ask(gateway).status_code for _ in range(20)] == [200] * 20
