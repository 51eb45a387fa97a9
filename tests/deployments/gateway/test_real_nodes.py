"""The gateway before real nodes with a real Triton: promotions, killed servers, and answers that are Triton's own."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.gateway.state import Watch
from tests.deployments.gateway.house import House, house, until
from tests.deployments.gateway.test_grpc_door import Stream
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet

pytestmark = pytest.mark.slow

triton_http: Any = importlib.import_module("tritonclient.http")
triton_grpc: Any = importlib.import_module("tritonclient.grpc")
MODEL = "tiny"
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
    with served(fleet, tmp_path / "one") as node:
        yield node


@pytest.fixture
def two(fleet: Fleet, tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    with ExitStack() as stack:
        nodes = [stack.enter_context(served(fleet, tmp_path / name, name)) for name in ("one", "two")]
        yield nodes[0], nodes[1]


def ask(gateway: House, text: str = "what", model: str = MODEL) -> httpx.Response:
    return gateway.generate(text, model=model)


def wait_ready(gateway: House, *nodes: Served, release: int) -> None:
    for node in nodes:
        node.wait_for(MODEL, release)
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


def test_no_request_of_32_clients_is_lost_by_30_promotions_which_move_at_once(one: Served) -> None:
    ways = (_generate, _generate_stream, _model_infer, _model_stream_infer)
    one.release(MODEL)
    with before(one) as gateway:
        wait_ready(gateway, one, release=1)
        got: list[tuple[float, str, list[str]]] = []
        stop = threading.Event()

        def keep_asking(number: int) -> None:
            way = ways[number % len(ways)]
            while not stop.is_set():
                began = time.monotonic()
                try:
                    answer = way(gateway)
                except Exception as error:
                    answer = [f"{type(error).__name__}: {error}"]
                got.append((time.monotonic() - began, way.__name__, answer))
                stop.wait(0.2)

        askers = [threading.Thread(target=keep_asking, args=(number,)) for number in range(32)]
        for asker in askers:
            asker.start()
        moves: list[float] = []
        try:
            for _ in range(30):
                number = one.release(MODEL, public=False)
                one.wait(lambda number=number: one.state(MODEL, number) == "ready", "candidate")
                by_number = f"{MODEL}@{number}"
                until(lambda name=by_number: ask(gateway, model=name).status_code == 200, "look at the candidate")
                one.target.move(MODEL, lambda current, number=number: current.promoted(number))
                began = time.monotonic()
                answer = f"{MODEL}@{number}"
                until(lambda answer=answer: _generate(gateway) == [answer], "promotion", 60)
                moves.append(time.monotonic() - began)
        finally:
            stop.set()
            for asker in askers:
                asker.join(30)
        names = {f"{MODEL}@{number}" for number in range(1, 32)}
        wrong = [(way, answer) for _, way, answer in got if len(set(answer)) != 1 or answer[0] not in names]
        assert not wrong, wrong[:5]
        assert {way for _, way, _ in got} == {way.__name__ for way in ways}
        # A finished request that was cancelled would keep its release loaded for ever.
        one.wait(lambda: not any(one.processes(MODEL, number) for number in range(1, 31)), "end of old releases")
        slow, moved = sorted(seconds for seconds, _, _ in got), sorted(moves)
        print(f"\n{len(got)} requests, 0 failed; p50 {slow[len(slow) // 2]:.2f} s, the slowest {slow[-1]:.2f} s")
        print(f"a promotion is followed after {moved[15]:.2f} s, the latest after {moved[-1]:.2f} s")
        assert moved[15] < 2.0


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
