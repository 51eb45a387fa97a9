"""Triton's protocol over gRPC, with Triton's own client, through a real gateway before stand-ins of nodes."""

from __future__ import annotations

import importlib
import queue
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.gateway import sending
from deployments.gateway.keys import Keys, new_key
from deployments.gateway.serve import Options
from infra.settings import CHECKOUT
from tests.deployments.gateway.house import MODEL, House, house, until
from tests.deployments.gateway.test_keys import write

grpc: Any = importlib.import_module("grpc")
triton: Any = importlib.import_module("tritonclient.grpc")
exceptions: Any = importlib.import_module("tritonclient.utils")
messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
service: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")


@pytest.fixture
def served() -> Iterator[House]:
    with house(options=Options(body_bytes=1 << 20, body_s=0.5, stream_s=1.0)) as made:
        made.add_node("one")
        made.public()
        yield made


def inputs(prompt: str, **more: int) -> list[Any]:
    text = triton.InferInput("text_input", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[prompt.encode()]], dtype=np.object_))
    found = [text]
    for name, value in {"max_tokens": 4, **more}.items():
        is_bool = isinstance(value, bool)
        tensor = triton.InferInput(name, [1, 1], "BOOL" if is_bool else "INT32")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.bool_ if is_bool else np.int32))
        found.append(tensor)
    return found


class Stream:
    """A stream of Triton's client, whose responses are kept as they come."""

    def __init__(self, client: Any, headers: dict[str, str] | None = None) -> None:
        self.client = client
        self.got: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(self._keep, headers=headers)

    def _keep(self, result: Any, error: Any) -> None:
        self.got.put((result, error))

    def next(self) -> tuple[Any, Any]:
        return self.got.get(timeout=20)

    def texts(self, count: int) -> list[str]:
        found: list[str] = []
        for _ in range(count):
            result, error = self.next()
            assert error is None, error
            found.append(result.as_numpy("text_output").flat[0].decode())
        return found


@pytest.fixture
def client(served: House) -> Iterator[Any]:
    made = triton.InferenceServerClient(served.grpc)
    yield made
    made.close()


def test_a_unary_request_is_answered_though_the_model_streams(served: House, client: Any) -> None:
    result = client.infer(MODEL, inputs("hello"), request_id="r-1")
    assert result.as_numpy("text_output").tolist() == [[b"hello"]]
    assert (result.get_response().id, result.get_response().model_name) == ("r-1", MODEL)
    with pytest.raises(exceptions.InferenceServerException) as several:
        client.infer(MODEL, inputs("twice"))
    assert str(several.value.status()) == "StatusCode.UNIMPLEMENTED"


def test_a_stream_carries_several_requests_and_their_errors(served: House, client: Any) -> None:
    stream = Stream(client)
    client.async_stream_infer(MODEL, inputs("count 3 0"), request_id="a", enable_empty_final_response=True)
    assert stream.texts(3) == ["0 ", "1 ", "2 "]
    last, _ = stream.next()
    assert last.get_response().parameters["triton_final_response"].bool_param and not last.get_response().outputs
    client.async_stream_infer(MODEL, inputs("count 2 0"), request_id="b")
    assert stream.texts(2) == ["0 ", "1 "]
    client.async_stream_infer("nobody", inputs("x"))
    client.async_stream_infer(MODEL, inputs("after"))
    said = [stream.next(), stream.next()]
    assert [error.message() for _, error in said if error is not None] == ["the model 'nobody' does not exist"]
    assert [result.as_numpy("text_output").flat[0] for result, error in said if error is None] == [b"after"]
    client.stop_stream()
    assert stream.got.empty(), "no empty response was sent to who did not ask for it"


def test_the_examples_of_the_documentation(
    served: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("HTTP", served.url), ("GRPC", served.grpc)):
        monkeypatch.setenv(f"ENGINEHOUSE_GATEWAY_{name}", value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    page = (CHECKOUT / "docs" / "how-to" / "clients.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for example in examples:
        exec(example.replace("smollm2-135m", MODEL), {})
        assert capsys.readouterr().out == "Write one sentence about the sea."
    assert len(examples) == 2


def test_requests_of_a_stream_run_at_once(served: House, client: Any) -> None:
    stream = Stream(client)
    began = time.monotonic()
    for _ in range(8):
        client.async_stream_infer(MODEL, inputs("count 5 0.1"))
    assert sorted(stream.texts(40)) == sorted([f"{number} " for number in range(5)] * 8)
    assert time.monotonic() - began < 3
    client.stop_stream()


def test_a_client_that_leaves_is_seen_by_the_node_at_once(served: House, client: Any) -> None:
    one = served.nodes["one"]
    stream = Stream(client)
    client.async_stream_infer(MODEL, inputs("count 1000 0.02"))
    stream.texts(2)
    client.stop_stream(cancel_requests=True)
    assert until(lambda: one.cancelled == ["count 1000 0.02"], "cancellation") < 0.5


def test_a_unary_client_that_gives_up(served: House, client: Any) -> None:
    one = served.nodes["one"]
    with pytest.raises(exceptions.InferenceServerException) as late:
        client.infer(MODEL, inputs("count 1 30"), client_timeout=0.5)
    assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert until(lambda: one.cancelled == ["count 1 30"], "cancellation") < 0.7


def test_a_finished_request_is_not_cancelled(served: House, client: Any) -> None:
    """Triton 2.51 never unloads a model one of whose finished requests was cancelled."""
    one = served.nodes["one"]
    for number in range(20):
        assert client.infer(MODEL, inputs(f"done-{number}")).as_numpy("text_output") is not None
    until(lambda: len(one.finished) == 20, "end of each")
    assert one.cancelled == []


def test_metadata_configuration_and_readiness(served: House, client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    metadata = client.get_model_metadata(MODEL)
    assert metadata.name == MODEL and {each.name for each in metadata.inputs} >= {"text_input", "max_tokens"}
    config = client.get_model_config(MODEL).config
    assert config.max_batch_size == 64 and config.model_transaction_policy.decoupled
    assert {each.name: list(each.dims) for each in config.input}["stop_words"] == [-1]
    assert client.get_server_metadata().name == "enginehouse"
    served.public(on={})
    assert not client.is_model_ready(MODEL) and not client.is_server_ready()


@pytest.mark.parametrize(
    "call",
    ["get_model_repository_index", "get_inference_statistics", "get_trace_settings", "get_log_settings"],
)
def test_everything_else_is_not_implemented(client: Any, call: str) -> None:
    with pytest.raises(exceptions.InferenceServerException) as refused:
        getattr(client, call)()
    assert str(refused.value.status()) == "StatusCode.UNIMPLEMENTED"


def test_models_cannot_be_loaded_nor_memory_shared(client: Any) -> None:
    for call in (
        lambda: client.load_model("x", config="{}"),
        lambda: client.unload_model(MODEL),
        lambda: client.register_system_shared_memory("x", "/x", 10),
    ):
        with pytest.raises(exceptions.InferenceServerException) as refused:
            call()
        assert str(refused.value.status()) == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("model", "version", "status"),
    [("nobody", "", "NOT_FOUND"), (f"{MODEL}--r1", "", "NOT_FOUND"), (MODEL, "3", "NOT_FOUND")],
)
def test_names_that_are_not_served(client: Any, model: str, version: str, status: str) -> None:
    with pytest.raises(exceptions.InferenceServerException) as refused:
        client.infer(model, inputs("x"), model_version=version)
    assert str(refused.value.status()) == f"StatusCode.{status}"


def test_a_request_that_is_too_large(served: House, client: Any) -> None:
    with pytest.raises(exceptions.InferenceServerException) as refused:
        client.infer(MODEL, inputs("x" * (2 << 20)))
    assert str(refused.value.status()) == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.infer(MODEL, inputs("small")) is not None and served.nodes["one"].asked == [
        (f"{MODEL}--r1--llm", "small")
    ]


def test_keys_are_looked_at_before_the_request_is_read(tmp_path: Path) -> None:
    secret, entry = new_key("a")
    write(tmp_path / "keys.yaml", entry)
    with house(keys=Keys(tmp_path / "keys.yaml")) as made:
        made.add_node("one")
        made.public()
        with grpc.insecure_channel(made.grpc) as channel:
            stub = service.GRPCInferenceServiceStub(channel)
            for call in (stub.ModelMetadata, stub.ModelReady, stub.ModelConfig, stub.ModelInfer):
                with pytest.raises(grpc.RpcError) as refused:
                    call(messages.ModelInferRequest() if call is stub.ModelInfer else messages.ModelReadyRequest())
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as refused:
                next(stub.ModelStreamInfer(iter(())))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert dict(refused.value.trailing_metadata())["enginehouse-code"] == "key-missing"
        client = triton.InferenceServerClient(made.grpc)
        headers = {"authorization": f"Bearer {secret}"}
        assert client.infer(MODEL, inputs("x"), headers=headers).as_numpy("text_output").tolist() == [[b"x"]]
        stream = Stream(client, headers)
        client.async_stream_infer(MODEL, inputs("count 2 0"))
        assert stream.texts(2) == ["0 ", "1 "]
        client.stop_stream()
        client.close()


def test_a_request_that_does_not_come(served: House) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        never: queue.SimpleQueue[None] = queue.SimpleQueue()
        infer = channel.stream_unary(f"/{'inference.GRPCInferenceService'}/ModelInfer")
        call = infer.future(iter(never.get, None))
        assert call.exception(20).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        began = time.monotonic()
        assert list(stream(iter(never.get, None))) == []
        assert 0.8 < time.monotonic() - began < 5
        never.put(None)
        never.put(None)


def test_a_client_that_takes_nothing_of_its_answer(served: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 0.5)
    one = served.nodes["one"]
    request = messages.ModelInferRequest(model_name=MODEL)
    for tensor in inputs("large"):
        request.inputs.append(tensor._get_tensor())
        request.raw_input_contents.append(tensor._get_content())
    with grpc.insecure_channel(served.grpc) as channel:
        call = service.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]))
        until(lambda: one.cancelled == ["large"], "cancellation", 15)
        call.cancel()


def test_a_node_that_dies_before_the_first_token_and_after(served: House, client: Any) -> None:
    two = served.add_node("two")
    served.public()
    stream = Stream(client)
    client.async_stream_infer(MODEL, inputs("count 1 0.5"))
    until(lambda: any(each.running for each in served.nodes.values()), "request")
    first = next(name for name, each in served.nodes.items() if each.running)
    served.run(served.nodes[first].stop())
    assert stream.texts(1) == ["0 "]
    other = served.nodes["one"] if first == "two" else two
    client.async_stream_infer(MODEL, inputs("count 100 0.05"))
    stream.texts(2)
    served.run(other.stop())
    while (said := stream.next())[1] is None:
        pass
    assert "the node stopped answering" in said[1].message()
    client.stop_stream()


def test_silent_connections(served: House, client: Any) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            with suppress(OSError):
                opened = socket.create_connection(("127.0.0.1", served.gateway.grpc_port), timeout=5)
                stack.enter_context(opened)
        assert client.infer(MODEL, inputs("others")) is not None
