"""How the model of TensorRT-LLM's C++ backend is called: in this same Triton by BLS, in one of its own over gRPC.

An engine that takes one Triton process a rank has servers of its own on this machine; everything else runs here.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .contract import Tensor
from .engine import EngineFailed

CALLED_MODEL = "tensorrt_llm_model_name"
"""The parameter of the `config.pbtxt` that names the model to call, as NVIDIA's own calling model has it."""

CALLED_SERVER = "tensorrt_llm_server"
"""The parameter that says where, as `host:port` of its gRPC; without it, in this same Triton. A node sets it."""

KEPT_S = 10.0
"""How long responses that were read stay referenced.

The Python backend lets go of them too, on a thread of its own and a moment later. Up to 24.10 at least it does not
hold Python's lock then: if nobody else has them, their arrays go while others run, and the process crashes now and
then (`Stub::SendCleanupId` and `~PbTensor`; the destructor takes the lock since python_backend's #390).
"""

_CHANNEL = (
    ("grpc.max_receive_message_length", -1),
    # The engine's servers are started again when they die; gRPC by itself would take up to two minutes to look again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


@dataclass(frozen=True)
class Response:
    """One of a request; `failure` is empty where it is none."""

    failure: str
    tensors: Mapping[str, Tensor]


class CalledModel(Protocol):
    def call(self, request_id: str, inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Iterator[Response]:
        """Hand a request over, from any thread: the responses as they come. Raises EngineFailed, then or later."""
        ...

    def close(self) -> None:
        """No call is running any more. The model itself is Triton's, and unloaded by itself."""
        ...


def called_model(parameters: Mapping[str, str]) -> CalledModel:
    """The model that the `config.pbtxt` with these parameters names."""
    name = parameters[CALLED_MODEL]
    server = parameters.get(CALLED_SERVER)
    return ModelHere(name) if server is None else ModelElsewhere(server, name)


class ModelHere:
    """A model of this Triton."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._kept: deque[tuple[float, Any]] = deque()

    def call(self, request_id: str, inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Iterator[Response]:
        triton: Any = importlib.import_module("triton_python_backend_utils")
        request = triton.InferenceRequest(
            model_name=self._name,
            request_id=request_id,
            inputs=[triton.Tensor(name, value) for name, value in inputs.items()],
            requested_output_names=list(outputs),
        )
        try:
            responses = request.exec(decoupled=True)
        except triton.TritonModelException as error:
            raise EngineFailed(f"Triton does not take a request for '{self._name}': {error}") from error
        return self._read(responses)

    def close(self) -> None:
        """Before the memory goes that what was kept lies in."""
        with self._lock:
            self._kept.clear()

    def _read(self, responses: Any) -> Iterator[Response]:
        try:
            for response in responses:
                if response.has_error():
                    yield Response(response.error().message(), {})
                else:
                    yield Response("", {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()})
        finally:
            self._keep(responses)

    def _keep(self, responses: Any) -> None:
        now = time.monotonic()
        with self._lock:
            self._kept.append((now, responses))
            while now - self._kept[0][0] > KEPT_S:
                self._kept.popleft()


class ModelElsewhere:
    """A model of the Triton whose gRPC is at `address`. Connects with the first call, and again where that is lost."""

    def __init__(self, address: str, name: str) -> None:
        self._grpc: Any = importlib.import_module("grpc")
        self._library: Any = importlib.import_module("tritonclient.grpc")
        self._utilities: Any = importlib.import_module("tritonclient.utils")
        self._name = name
        self._channel: Any = self._grpc.insecure_channel(address, options=_CHANNEL)
        self._stub: Any = self._library.service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def call(self, request_id: str, inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Iterator[Response]:
        request = self._library.service_pb2.ModelInferRequest(model_name=self._name, id=request_id)
        for name, value in inputs.items():
            data_type = self._utilities.np_to_triton_dtype(value.dtype)
            packed = self._utilities.serialize_byte_tensor(value).item() if data_type == "BYTES" else value.tobytes()
            request.inputs.add(name=name, datatype=data_type, shape=value.shape)
            request.raw_input_contents.append(packed)
        for name in outputs:
            request.outputs.add(name=name)
        # A stream of one request: it ends by itself after the last response.
        return self._read(self._stub.ModelStreamInfer(iter((request,))))

    def close(self) -> None:
        self._channel.close()

    def _read(self, messages: Iterable[Any]) -> Iterator[Response]:
        try:
            for message in messages:
                result = self._library.InferResult(message.infer_response)
                names = [output.name for output in message.infer_response.outputs]
                yield Response(message.error_message, {name: result.as_numpy(name) for name in names})
        except self._grpc.RpcError as error:
            raise EngineFailed(f"the engine's own servers do not answer: {error}") from error
