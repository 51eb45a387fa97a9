"""Releases with several processes of `llm` on the real Triton: answers, clients that leave, and processes that die."""

from __future__ import annotations

import importlib
import queue
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.node.asking import dead
from deployments.node.known import KnownModel, KnownRelease
from deployments.node.watching import Watch, Watched
from infra.errors import TritonError
from infra.triton.processes import model_processes
from tasks.serving.cancellation import CANCELLATION_ID
from tasks.triton.placement import place_release, placed_models, write_public
from tests.conftest import RunningTriton
from tests.tasks.kinds.served_kinds import QUESTION, Role, trt_engine
from tests.tasks.serving.published import ALWAYS, inputs, read, streamed
from tests.waiting import wait

pytestmark = pytest.mark.slow

triton_grpc: Any = importlib.import_module("tritonclient.grpc")

SLOTS = 2
LONG: dict[str, Any] = {"text_input": "1 2 3 4 5 6 7 8 9", "max_tokens": 1500, "stream": True, "bad_words": ["\n"]}
SHORT: dict[str, Any] = {"text_input": "1 2 3 4 5 6 7 8 9", "max_tokens": 2}


@pytest.fixture(scope="module")
def triton(start_triton: Callable[[str], RunningTriton]) -> RunningTriton:
    return start_triton("processes")


def loaded(
    triton: RunningTriton, model: str, processes: int, folder: Path, slots: int = SLOTS, deadline_s: float = 20.0
) -> Path:
    """A release of so many processes, public; returns the folder of its `llm`."""
    artifact, engine = folder / "artifact", folder / "engine"
    artifact.mkdir()
    engine.mkdir()
    role = Role(slots, 2048, False, deadline_s, greedy=True)
    trt_engine("1.2.1", llm_instances=processes).write(artifact, engine, role)
    place_release(artifact, engine, triton.repository, model, 1, grpc=triton.client.grpc)
    for name in placed_models(triton.repository, model, 1):
        triton.client.load(name)
    write_public(triton.repository, model, 1)
    triton.client.load(model)
    llm = triton.repository / f"{model}--r1--llm"
    assert len(model_processes(llm)) == processes
    return llm


def unloaded(triton: RunningTriton, model: str) -> bool:
    names = (model, *reversed(placed_models(triton.repository, model, 1)))
    for name in names:
        triton.client.unload(name)
    until = time.monotonic() + 40
    while time.monotonic() < until:
        states = {each.name: each.state for each in triton.client.index()}
        if not any(states.get(name) in ("READY", "UNLOADING") for name in names):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module", params=[2, 3])
def model(request: pytest.FixtureRequest, triton: RunningTriton, tmp_path_factory: Any) -> Iterator[str]:
    name = f"shared{request.param}"
    llm = loaded(triton, name, request.param, tmp_path_factory.mktemp(name))
    yield name
    # Whatever the tests have left behind, it ends, and nothing stays.
    assert unloaded(triton, name)
    wait(lambda: not model_processes(llm), "the end of its processes")


def seconds(triton: RunningTriton, model: str) -> float:
    """Of a short request, which waits for a slot."""
    began = time.monotonic()
    assert triton.client.generate(model, SHORT).text
    return time.monotonic() - began


def test_streams_are_exact_whichever_processes_have_them(triton: RunningTriton, model: str) -> None:
    def same(number: int) -> bool:
        asked = {
            **SHORT,
            "max_tokens": 10 + number % 7,
            "text_input": LONG["text_input"] + " 1 2 3"[: 2 * (number % 4)],
        }
        whole = triton.client.generate(f"{model}--r1--llm", asked).text
        with triton.client.stream((model, f"{model}--r1")[number % 2], {**asked, "stream": True}) as stream:
            return bool(whole) and "".join(piece.text for piece in stream) == whole

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(40)))


def test_batches_and_refusals(triton: RunningTriton, model: str) -> None:
    prompts = [QUESTION["text_input"], "The sky is", "1 2 3"]
    given = inputs(triton_grpc, prompts, 8, {**ALWAYS, "temperature": 0.0})
    alone = [triton.client.generate(model, {"text_input": text, "max_tokens": 8}).text for text in prompts]
    for _ in range(4):
        assert read(streamed(triton.client.grpc, model, given, ()), rows=3) == alone
        for asked, named in (
            ({"max_token": 4}, "'max_token'"),
            ({"beam_width": 9}, "'beam_width'"),
            ({}, "'text_input'"),
        ):
            with pytest.raises(TritonError, match=named):
                triton.client.generate(model, {"max_tokens": 4, **asked, **({"text_input": "a"} if asked else {})})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_that_leave_free_their_slots(triton: RunningTriton, model: str, protocol: str) -> None:
    for _ in range(3):
        for _ in range(SLOTS):
            if protocol == "grpc":
                with triton.client.stream(model, LONG) as stream:
                    next(iter(stream))
            else:
                next(triton.client.generate_stream(model, LONG))
        taken = seconds(triton, model)
        print(f"\n{protocol}: a short request after {SLOTS} dropped streams took {taken:.2f} s")
        assert taken < 1.5  # 0.6 s on an idle machine


def test_an_id_cancels_whichever_process_has_it(triton: RunningTriton, model: str) -> None:
    with triton_grpc.InferenceServerClient(triton.client.grpc) as client:
        heard: queue.Queue[tuple[Any, Any]] = queue.Queue()

        def hear(result: Any, error: Any) -> None:
            heard.put((result, error))

        client.start_stream(hear)
        long = inputs(triton_grpc, [LONG["text_input"]], 1500, {"stream": True, "bad_words": ["\n"]})
        for turn in range(4):
            id = f"mine-{turn}"
            client.async_stream_infer(f"{model}--r1--llm", long, parameters={CANCELLATION_ID: id})
            assert heard.get(timeout=10)[1] is None
            told = triton_grpc.InferInput(CANCELLATION_ID, [1, 1], "BYTES")
            told.set_data_from_numpy(np.array([[id.encode()]], dtype=object))
            # Once: the process that hears of it tells the others.
            client.async_stream_infer(f"{model}--r1--llm", [told])
            told_at = time.monotonic()
            while (error := heard.get(timeout=10)[1]) is None:
                assert time.monotonic() - told_at < 2
            assert "[cancelled]" in str(error)
        client.stop_stream()


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_requests_that_fail_while_their_clients_are_asked_after_are_let_go(
    triton: RunningTriton, processes: int, tmp_path: Path
) -> None:
    """Of so many some end while Triton brings their ticket: it would never unload an ensemble that fails just then."""
    name = f"late{processes}"
    loaded(triton, name, processes, tmp_path, slots=12, deadline_s=1.2)

    def fail(number: int) -> None:
        phases = random.Random(number)
        for _ in range(25):
            time.sleep(phases.random() / 2)
            with pytest.raises(TritonError, match="deadline"):
                list(triton.client.generate_stream(name, LONG))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(8)))
    time.sleep(2)  # for the engine to be stopped
    assert unloaded(triton, name)


def test_a_process_that_dies_leaves_nobody_waiting_and_its_node_hears_of_it(
    start_triton: Callable[[str], RunningTriton], tmp_path: Path
) -> None:
    """Triton itself ends where the process held its lock in their shared memory: then nobody waits either, but there is
    nothing to see."""
    for turn in range(4):
        triton = start_triton(f"dying{turn}")
        folder = tmp_path / str(turn)
        folder.mkdir()
        try:
            process_dies(triton, folder)
        except (AssertionError, TritonError, pytest.fail.Exception):
            if triton.process.poll() is None or "lock_exception" not in triton.log.read_text():
                raise
        else:
            return
    pytest.fail("Triton ended with the process each time")


def process_dies(triton: RunningTriton, folder: Path) -> None:
    llm = loaded(triton, "dying", 2, folder, slots=12)

    def stream(_: int) -> str:
        try:
            with triton.client.within(15).stream("dying", LONG) as pieces:
                list(pieces)
        except TritonError as error:
            return error.message
        return "ended"

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(stream, number) for number in range(12)]
        # Longer than a look at each takes, by which a process that is alone with a request gets a witness.
        time.sleep(4)
        assert not any(each.done() for each in running)
        model_processes(llm)[0].kill()
        killed = time.monotonic()
        wait(lambda: bool(dead(triton.client, "dying", 5, by_id=True)), "answer that a node understands")
        outcomes = [each.result(5) for each in running]
    print(f"\nall ended {time.monotonic() - killed:.2f} s after the kill: {sorted(set(outcomes))}")
    assert all("ask again" in outcome or "is not healthy" in outcome for outcome in outcomes)
    with pytest.raises(TritonError, match="is not healthy"):
        triton.client.generate("dying", SHORT)
    watch = Watch(triton.client)
    release = KnownRelease()
    release.became_ready()
    known = KnownModel()
    watch.start()
    try:
        watch.see(triton.client, (Watched(known, release, "dying--r1", "dying", 30.0, True),))
        wait(lambda: bool(release.lost), "release that is taken for dead")
    finally:
        watch.stop()
    # As a node loads it again.
    for name in reversed(placed_models(triton.repository, "dying", 1)):
        triton.client.unload(name)
        for process in model_processes(triton.repository / name):
            process.kill()
    for name in placed_models(triton.repository, "dying", 1):
        triton.client.load(name)
    assert not dead(triton.client, "dying--r1", 5, by_id=True)
    assert triton.client.generate("dying--r1", SHORT).text
