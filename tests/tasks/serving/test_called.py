"""The backend's model in a server of its own: what goes over the wire and comes back, from a server of gRPC's own."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from infra.processes.sessions import free_ports
from tasks.serving.backend import BackendTokens
from tasks.serving.called import CALLED_MODEL, CALLED_SERVER, ModelElsewhere, ModelHere, called_model
from tasks.serving.contract import RequestRefused
from tasks.serving.engine import EngineFailed
from tasks.serving.tokens import Tokens

grpc: Any = importlib.import_module("grpc")
library: Any = importlib.import_module("tritonclient.grpc")
messages, service = library.service_pb2, library.service_pb2_grpc


class Server(service.GRPCInferenceServiceServicer):
    """Answers every stream with `replies`, the last one only after a request to stop where `endless`."""

    def __init__(self, port: int) -> None:
        self.asked: list[Any] = []
        self.replies: Sequence[Any] = ()
        self.endless = False
        self._stopped = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4))
        service.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        assert self._server.add_insecure_port(f"127.0.0.1:{port}") == port
        self._server.start()

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            self.asked.append(request)
            if any(entry.name == "stop" for entry in request.inputs):
                self._stopped.set()
                return
            yield from self.replies[:-1]
            if self.endless:
                assert self._stopped.wait(5)
            yield from self.replies[-1:]

    def stop(self) -> None:
        self._server.stop(None).wait(5)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def start(port: int) -> Iterator[Callable[[], Server]]:
    started: list[Server] = []

    def start() -> Server:
        started.append(Server(port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def model(port: int) -> Iterator[ModelElsewhere]:
    made = called_model({CALLED_MODEL: "m--r7--tensorrt_llm", CALLED_SERVER: f"127.0.0.1:{port}"})
    assert isinstance(made, ModelElsewhere)
    yield made
    made.close()


def reply(*ids: int) -> Any:
    answer = messages.ModelInferResponse()
    for name, shape, value in (("output_ids", (1, 1, len(ids)), ids), ("sequence_length", (1, 1), [len(ids)])):
        answer.outputs.add(name=name, datatype="INT32", shape=shape)
        answer.raw_output_contents.append(np.array(value, dtype=np.int32).tobytes())
    return messages.ModelStreamInferResponse(infer_response=answer)


def failure(text: str) -> Any:
    return messages.ModelStreamInferResponse(error_message=text)


def tokens(model: ModelElsewhere, **inputs: Any) -> BackendTokens:
    return BackendTokens(threading.Semaphore(), model, inputs, ["output_ids", "sequence_length"])


def test_without_a_server_it_is_a_model_of_this_triton() -> None:
    assert isinstance(called_model({CALLED_MODEL: "m--r7--tensorrt_llm"}), ModelHere)


def test_a_request_goes_out_as_it_is_and_its_tokens_come_one_after_the_other(
    start: Callable[[], Server], model: ModelElsewhere
) -> None:
    server = start()
    server.replies = [reply(5), reply(6, 7), reply()]
    inputs = {
        "input_ids": np.array([[1, 2, 3]], dtype=np.int32),
        "streaming": np.array([[True]]),
        "guided_decoding_guide": np.array([[b"a+"]], dtype=np.object_),
    }
    assert list(tokens(model, **inputs)) == [Tokens((5,)), Tokens((6, 7)), Tokens(())]
    (request,) = server.asked
    assert request.model_name == "m--r7--tensorrt_llm" and request.id.isdigit()
    told = [(entry.name, entry.datatype, list(entry.shape)) for entry in request.inputs]
    assert told == [
        ("input_ids", "INT32", [1, 3]),
        ("streaming", "BOOL", [1, 1]),
        ("guided_decoding_guide", "BYTES", [1, 1]),
    ]
    assert list(request.raw_input_contents) == [inputs["input_ids"].tobytes(), b"\1", b"\2\0\0\0a+"]
    assert [entry.name for entry in request.outputs] == ["output_ids", "sequence_length"]


def test_failures_of_the_engine_are_what_they_are_in_this_triton(
    start: Callable[[], Server], model: ModelElsewhere
) -> None:
    server = start()
    server.replies = [reply(5), failure("Prompt length (9) exceeds maximum input length (8).")]
    with pytest.raises(RequestRefused, match="length"):
        list(tokens(model))
    server.replies = [failure("CUDA error")]
    with pytest.raises(EngineFailed, match="the engine failed: CUDA error"):
        list(tokens(model))


def test_a_cancelled_request_is_told_to_stop_under_its_own_number(
    start: Callable[[], Server], model: ModelElsewhere
) -> None:
    server = start()
    server.replies, server.endless = [reply(5), reply(6)], True
    running = tokens(model)
    found = iter(running)
    assert next(found).ids == (5,)
    running.cancel()
    assert list(found) == []
    assert len({request.id for request in server.asked}) == 1 and len(server.asked) >= 2


def test_servers_that_end_are_a_failure_and_those_that_come_back_are_asked_at_once(
    start: Callable[[], Server], model: ModelElsewhere
) -> None:
    first = start()
    first.replies, first.endless = [reply(5), reply(6)], True
    found = iter(tokens(model))
    assert next(found).ids == (5,)
    first.stop()
    for ended in (found, iter(tokens(model))):
        with pytest.raises(EngineFailed, match="own servers do not answer"):
            list(ended)
    start().replies = [reply(7)]
    # Not before gRPC has tried again, which it would put off for seconds by itself.
    grpc.channel_ready_future(model._channel).result(2)  # pyright: ignore[reportPrivateUsage]
    assert list(tokens(model)) == [Tokens((7,))]
