"""Triton's gRPC: a stream of one request for each answer, all over one channel."""

from __future__ import annotations

import importlib
import struct
import time
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from tasks.load.outcome import FailureKind, Hearing, RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.triton_sse import COUNTS, inputs_of, stream_failure
from tasks.load.wire import Call, Sampling
from tasks.serving.contract import CONTRACT
from tasks.serving.contract import inputs_of as contract_inputs
from tasks.serving.figures import UNCOUNTED

_SERVICE = "inference.GRPCInferenceService"
_TYPES = {each.name: each.data_type for each in contract_inputs(CONTRACT)}
_FORMATS = {"INT32": "<i", "FP32": "<f", "UINT64": "<Q", "BOOL": "<?"}
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_http_proxy", 0),
    # A channel of its own for each load: else gRPC hands out a connection that an earlier one has left broken.
    ("grpc.use_local_subchannel_pool", 1),
)
_KINDS: dict[str, FailureKind] = {
    "UNAUTHENTICATED": "unauthorized", "PERMISSION_DENIED": "unauthorized", "RESOURCE_EXHAUSTED": "limited",
    "UNAVAILABLE": "unavailable", "DEADLINE_EXCEEDED": "deadline", "INVALID_ARGUMENT": "refused",
    "NOT_FOUND": "refused", "UNIMPLEMENTED": "refused",
}  # fmt: skip


class TritonGrpc:
    """`ModelStreamInfer` of a node's Triton, or of the gateway. `address` is `host:port`."""

    def __init__(
        self,
        model: str,
        address: str,
        sampling: Sampling,
        *,
        metadata: tuple[tuple[str, str], ...] = (),
        certificate: Path | None = None,
    ) -> None:
        self._messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
        self._grpc: Any = importlib.import_module("grpc")
        self._aio: Any = importlib.import_module("grpc.aio")
        self._model, self._address, self._sampling, self._metadata = model, address, sampling, metadata
        self._certificate = certificate
        self._channel: Any = None
        self._infer: Any = None
        self._counts = False

    async def open(self) -> None:
        self._channel = self._made_channel()
        self._infer = self._channel.unary_stream(
            f"/{_SERVICE}/ModelStreamInfer",
            request_serializer=self._messages.ModelInferRequest.SerializeToString,
            response_deserializer=self._messages.ModelStreamInferResponse.FromString,
        )
        ask = self._channel.unary_unary(
            f"/{_SERVICE}/ModelMetadata",
            request_serializer=self._messages.ModelMetadataRequest.SerializeToString,
            response_deserializer=self._messages.ModelMetadataResponse.FromString,
        )
        try:
            wanted = self._messages.ModelMetadataRequest(name=self._model)
            known = await ask(wanted, timeout=30, metadata=self._metadata)
        except self._aio.AioRpcError as error:
            raise _failure(error) from error
        self._counts = {each.name for each in known.inputs}.issuperset(COUNTS)

    def _made_channel(self) -> Any:
        if self._certificate is None:
            return self._aio.insecure_channel(self._address, options=_OPTIONS)
        try:
            credentials = self._grpc.ssl_channel_credentials(self._certificate.read_bytes())
        except OSError as error:
            raise UsageError(f"{self._certificate} is no certificate: {error}", code="load-address") from None
        return self._aio.secure_channel(self._address, credentials, options=_OPTIONS)

    def prepare(self, prompt: Prompt) -> Call:
        request = self._messages.ModelInferRequest(model_name=self._model)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        if self._sampling.uncounted and self._counts:  # releases of the first contract count all the same
            request.id = UNCOUNTED
        for name, value in inputs_of(prompt, self._sampling, counts=self._counts).items():
            request.inputs.add(name=name, datatype=_TYPES[name], shape=[1, 1])
            request.raw_input_contents.append(_raw(_TYPES[name], value))

        async def call(hearing: Hearing) -> None:
            await self._hear(request, hearing)

        return call

    async def _hear(self, request: Any, hearing: Hearing) -> None:
        final = False
        try:
            # Read to the end of the call: Triton 2.51 never unloads a model of which a finished request was cancelled.
            async for response in self._infer(request, metadata=self._metadata):
                moment = time.monotonic()
                if response.error_message:
                    raise stream_failure(response.error_message)
                piece = response.infer_response
                final = piece.parameters["triton_final_response"].bool_param
                for tensor, raw in zip(piece.outputs, piece.raw_output_contents, strict=False):
                    _read(hearing, tensor.name, raw, moment)
        except self._aio.AioRpcError as error:
            raise _failure(error) from error
        if not final:
            raise RequestFailed("broken", "the stream ended before the answer")

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def _raw(data_type: str, value: str | int | float | bool) -> bytes:
    """A tensor of one element. Source: Triton's `docs/protocol/extension_binary_data.md`."""
    if isinstance(value, str):
        encoded = value.encode()
        return struct.pack("<I", len(encoded)) + encoded
    return struct.pack(_FORMATS[data_type], value)


def _read(hearing: Hearing, name: str, raw: bytes, moment: float) -> None:
    match name:
        case "text_output":
            if len(raw) > 4:  # the length of an empty text alone has four bytes
                hearing.text(moment)
        case "num_output_tokens":
            hearing.count(struct.unpack_from("<i", raw)[0])
        case "num_input_tokens":
            hearing.input_tokens = struct.unpack_from("<i", raw)[0]
        case _:
            pass


def _failure(error: Any) -> RequestFailed:
    code, details = error.code().name, str(error.details() or "")
    kind = _KINDS.get(code, "failed")
    # gRPC has one code for a server that was never reached and for one that left in the middle.
    if kind == "unavailable" and "connect" in details.lower() and "reset" not in details.lower():
        kind = "unreachable"
    return RequestFailed(kind, f"{code}: {details}")
