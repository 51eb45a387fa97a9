"""How the model of TensorRT-LLM's C++ backend is called: over gRPC on this machine, all requests on one stream.

Also where it runs in this same Triton. A call by BLS would take a thread of this process as long as the answer lasts,
and one of the backend's own; and up to 24.10 at least its responses crash the process now and then.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .contract import Tensor
from .engine import EngineFailed
from .grpc_stream import GrpcStream
from .mailbox import Mailbox

CALLED_MODEL = "tensorrt_llm_model_name"
"""The parameter of the `config.pbtxt` that names the model to call, as NVIDIA's own calling model has it."""

DRAFT_MODEL = "tensorrt_llm_draft_model_name"
"""The parameter that names the model whose guesses the other checks, if there is one; also NVIDIA's."""

CALLED_SERVER = "tensorrt_llm_server"
"""The parameter that says where, as `host:port` of its gRPC. A node sets it."""

DEFAULT_SERVER = "127.0.0.1:8001"
"""Triton's own default."""

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_END_SECONDS = 10.0
"""How long a server may take to end a stream of which all is answered."""
_EMPTY_FINAL = "triton_enable_empty_final_response"
_FINAL = "triton_final_response"
_DTYPES: Mapping[str, Any] = {"INT32": np.int32, "FP32": np.float32}
"""Of the outputs that are read."""


@dataclass(frozen=True)
class Response:
    """One of a request; `failure` is empty where it is none."""

    failure: str
    tensors: Mapping[str, Tensor]


class CalledModel:
    """The model that the `config.pbtxt` with these parameters names in `parameter`. Connects with the first call.

    A stream that broke ends its requests by EngineFailed, and the next call begins another.
    """

    def __init__(self, parameters: Mapping[str, str], parameter: str = CALLED_MODEL) -> None:
        self._name = parameters[parameter]
        self._address = parameters.get(CALLED_SERVER, DEFAULT_SERVER)
        self._messages: Any = importlib.import_module("tritonclient.grpc").service_pb2
        self._utilities: Any = importlib.import_module("tritonclient.utils")
        self._stream: _Stream | None = None

    def call(self, request_id: str, inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Mailbox[Response]:
        """Hand a request over, on the event loop: its responses as they come."""
        if self._stream is None or self._stream.broken:
            self._stream = self._open()
        return self._stream.send(self._request(request_id, inputs, outputs))

    async def call_alone(
        self, request_id: str, inputs: Mapping[str, Tensor], outputs: Iterable[str]
    ) -> AsyncGenerator[Response]:
        """The same on a stream of its own, for a request that has the id of another. Raises EngineFailed."""
        stream = self._open()
        try:
            async for responses in stream.send(self._request(request_id, inputs, outputs)):
                for response in responses:
                    yield response
            await stream.end()
        finally:
            stream.close()

    async def close(self) -> None:
        """No call is running any more."""
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> _Stream:
        return _Stream(self._address, self._messages.ModelStreamInferResponse.FromString)

    def _request(self, request_id: str, inputs: Mapping[str, Tensor], outputs: Iterable[str]) -> Any:
        request = self._messages.ModelInferRequest(model_name=self._name, id=request_id)
        request.parameters[_EMPTY_FINAL].bool_param = True
        for name, value in inputs.items():
            # numpy has no bfloat16, and nothing else that is sent has 16 bits without a sign.
            data_type = "BF16" if value.dtype == np.uint16 else self._utilities.np_to_triton_dtype(value.dtype)
            packed = self._utilities.serialize_byte_tensor(value).item() if data_type == "BYTES" else value.tobytes()
            request.inputs.add(name=name, datatype=data_type, shape=value.shape)
            request.raw_input_contents.append(packed)
        for name in outputs:
            request.outputs.add(name=name)
        return request


class _Stream:
    """One stream of requests, and of their responses in any order."""

    def __init__(self, address: str, parse: Callable[[bytes], Any]) -> None:
        self.broken = False
        self._over = asyncio.Event()
        self._parse = parse
        self._mailboxes: dict[str, Mailbox[Response]] = {}
        self._call = GrpcStream(address, _METHOD, self._read, self._ended)
        self._connecting = asyncio.create_task(self._connect(*address.rsplit(":", 1)))

    def send(self, request: Any) -> Mailbox[Response]:
        mailbox = self._mailboxes[request.id] = Mailbox[Response]()
        self._call.send(request.SerializeToString())
        return mailbox

    async def end(self) -> None:
        """Let the server end it, whose requests are all answered.

        Triton 2.51 never unloads a model of which a stream was cancelled when its request had just ended.
        """
        self._call.end()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), _END_SECONDS)

    def close(self) -> None:
        self._connecting.cancel()
        self._call.close()

    async def _connect(self, host: str, port: str) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._call, host.strip("[]"), int(port))
        except OSError as error:
            self._call.fail(str(error))

    def _read(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            self._hand_on(self._parse(message))

    def _ended(self, reason: str) -> None:
        self.broken = True
        self._over.set()
        for mailbox in self._mailboxes.values():
            mailbox.end(EngineFailed(f"the engine's server does not answer: {reason}"))

    def _hand_on(self, message: Any) -> None:
        answer = message.infer_response
        mailbox = self._mailboxes[answer.id]
        if message.error_message:
            mailbox.put(Response(message.error_message, {}))
        elif answer.outputs:
            mailbox.put(Response("", _tensors(answer)))
        # What is not decoupled does not say it: its one response is the last.
        final = answer.parameters[_FINAL].bool_param if _FINAL in answer.parameters else True
        if final or message.error_message:
            del self._mailboxes[answer.id]
            mailbox.end()


def _tensors(answer: Any) -> dict[str, Tensor]:
    return {
        output.name: np.frombuffer(raw, _DTYPES[output.datatype]).reshape(tuple(output.shape))
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
