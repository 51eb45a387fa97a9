"""A stand-in for a node's Triton: a real gRPC server of the real service, as strict about requests as Triton is.

What a model answers, its prompt says: `count N SECONDS` gives N pieces with a pause before each, `twice` the whole text
once more, `large` a hundred megabytes, `refuse` an error, `fail CODE` one with this code, `stub` what Triton says of a
model whose process has died, `say TEXT` that text.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.serving.cancellation import CANCELLATION_ID
from tasks.serving.contract import inputs_of, outputs_of

grpc: Any = importlib.import_module("grpc")
aio: Any = importlib.import_module("grpc.aio")
messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
service: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")

_SIZES = {"INT32": 4, "FP32": 4, "UINT64": 8, "BOOL": 1}


def text(raw: bytes) -> str:
    """The first element of a tensor of texts."""
    return raw[4 : 4 + int.from_bytes(raw[:4], "little")].decode()


def texts(raw: bytes) -> list[str]:
    """All of them."""
    return [text(raw), *texts(raw[4 + int.from_bytes(raw[:4], "little") :])] if raw else []


def _prompt(request: Any) -> str:
    """What the client said, or said last."""
    sent = {each.name: raw for each, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
    if "text_input" in sent:
        return text(sent["text_input"])
    return json.loads(text(sent["messages"]))[-1]["content"]


@dataclass
class FakeNode(service.GRPCInferenceServiceServicer):
    """`models` are the names that it serves. What it was asked, and what was cancelled, it writes down.

    The models that are `broken` answer every prompt as `broken_says`; after a piece of their own if that is `torn`.
    With `cancels` a request can be cancelled by its id, as one of `llm`; and with `deaf` that comes to nothing.
    """

    models: set[str] = field(default_factory=set[str])
    counts_tokens: bool = False
    contract: int = 1
    cancels: bool = False
    deaf: bool = False
    cancelled_ids: list[str] = field(default_factory=list[str])
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    requests: list[Any] = field(default_factory=list[Any])
    metadata_asked: list[str] = field(default_factory=list[str])
    cancelled: list[str] = field(default_factory=list[str])
    traceparents: list[str] = field(default_factory=list[str])
    finished: list[str] = field(default_factory=list[str])
    running: int = 0
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    """The last piece of what was asked to `hold` it may come."""
    broken: set[str] = field(default_factory=set[str])
    broken_says: str = ""
    port: int = 0
    server: Any = None

    async def start(self, port: int = 0) -> None:
        self.server = aio.server(options=(("grpc.so_reuseport", 0),))
        service.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    async def stop(self) -> None:
        """End at once, as a process that is killed."""
        await self.server.stop(None)

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.metadata_asked.append(request.name)
        if request.name not in self.models:
            message = f"Request for unknown model: '{request.name}' is not found"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        answer = messages.ModelMetadataResponse(name=request.name, versions=["1"], platform="ensemble")
        for each in inputs_of(self.contract):
            answer.inputs.add(name=each.name, datatype=each.data_type, shape=[-1, -1 if each.many else 1])
        if self.cancels:
            answer.inputs.add(name=CANCELLATION_ID, datatype="BYTES", shape=[-1, 1])
        for output in outputs_of(self.contract):
            answer.outputs.add(name=output.name, datatype=output.data_type, shape=[-1, *output.dims])
        if self.counts_tokens and self.contract == 1:
            for name in ("num_input_tokens", "num_output_tokens"):
                answer.outputs.add(name=name, datatype="INT32", shape=[-1, 1])
        return answer

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.traceparents.append(dict(context.invocation_metadata()).get("traceparent", ""))
        async for request in requests:
            self.requests.append(request)
            if self.cancels and [each.name for each in request.inputs] == [CANCELLATION_ID]:
                self.cancelled_ids.append(text(request.raw_input_contents[0]))
                yield self._piece(request, None)
                continue
            prompt = ""
            self.running += 1
            try:
                if (problem := self._problem(request)) is not None:
                    yield self._error(request, problem)
                    continue
                prompt = _prompt(request)
                self.asked.append((request.model_name, prompt))
                says = self.broken_says if request.model_name in self.broken else prompt
                async for answer in self._answers(request, says):
                    yield answer
                self.finished.append(prompt)
            except (asyncio.CancelledError, GeneratorExit):  # while it waits, or while a piece is taken
                self.cancelled.append(prompt)
                raise
            finally:
                self.running -= 1

    async def _answers(self, request: Any, prompt: str) -> AsyncIterator[Any]:
        word, *rest = prompt.split()
        if word == "refuse":
            yield self._error(request, "'temperature' is -1; the least is 0")
            return
        if word == "fail":
            yield self._error(request, f"what happened [{rest[0]}]")
            return
        if word == "torn":
            yield self._piece(request, "0 ")
            yield self._error(request, "what happened [internal]")
            return
        if word == "stub":
            yield self._error(request, "Failed to process the request(s), message: Stub process 'x' is not healthy.")
            return
        if self.contract > 1 and request.inputs[0].shape[0] > 1:
            for answer in self._rows(request):
                yield answer
            return
        pieces, pause = {"twice": 2, "large": 1000}.get(word, 1), 0.0
        if word == "count":
            pieces, pause = int(rest[0]), float(rest[1])
        elif word == "hold":
            pieces = int(rest[0])
        for number in range(pieces):
            await asyncio.sleep(pause)
            if word == "hold" and number + 1 == pieces:
                await self.let_go.wait()
            if not self.deaf and request.parameters[CANCELLATION_ID].string_param in self.cancelled_ids:
                yield self._error(request, "the client cancelled the request [cancelled]")
                return
            counted = dict.fromkeys(("count", "hold"), f"{number} ")
            said = {**counted, "large": "x" * 100_000, "say": prompt[4:]}.get(word, prompt)
            yield self._piece(request, said, last=number + 1 == pieces)
        if request.parameters["triton_enable_empty_final_response"].bool_param:
            yield self._piece(request, None)

    def _rows(self, request: Any) -> Iterator[Any]:
        """A response for each row, the last row first, with what was asked for, or all."""
        sent = {each.name: raw for each, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
        asked = {each.name for each in request.outputs}
        for row, said in reversed(list(enumerate(texts(sent["text_input"])))):
            answer = self._piece(request, said)
            response = answer.infer_response
            for name, datatype, values in (
                ("output_log_probs", "FP32", [-1.0] * len(said)),
                ("batch_index", "INT32", [row]),
            ):
                if not asked or name in asked:
                    shape = [1, len(values)] if name == "batch_index" else [1, 1, len(values)]
                    response.outputs.add(name=name, datatype=datatype, shape=shape)
                    form = "f" if datatype == "FP32" else "i"
                    response.raw_output_contents.append(struct.pack(f"<{len(values)}{form}", *values))
            yield answer
        yield self._piece(request, None)

    def _piece(self, request: Any, said: str | None, *, last: bool = False) -> Any:
        answer = messages.ModelStreamInferResponse()
        response = answer.infer_response
        response.model_name, response.model_version, response.id = request.model_name, "1", request.id
        response.parameters["triton_final_response"].bool_param = said is None
        if said is not None:
            response.parameters["sequence_id"].int64_param = 0
            response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
            response.raw_output_contents.append(len(said.encode()).to_bytes(4, "little") + said.encode())
            if self.contract > 1 and last:
                response.outputs.add(name="finish_reason", datatype="BYTES", shape=[1, 1])
                response.raw_output_contents.append(b"\4\0\0\0stop")
            if self.counts_tokens:
                for name, count in (("num_input_tokens", 7), ("num_output_tokens", 3)):
                    response.outputs.add(name=name, datatype="INT32", shape=[1, 1])
                    response.raw_output_contents.append(count.to_bytes(4, "little"))
        return answer

    def _error(self, request: Any, message: str) -> Any:
        answer = messages.ModelStreamInferResponse(error_message=message)
        answer.infer_response.id = request.id
        return answer

    def _problem(self, request: Any) -> str | None:
        """What Triton refuses before a model sees it."""
        if request.model_name not in self.models:
            return f"Request for unknown model: '{request.model_name}' is not found"
        known = {each.name: each for each in inputs_of(self.contract)}
        if len(request.raw_input_contents) != len(request.inputs):
            return "expected raw contents of each input"
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            entry = known.get(tensor.name)
            if entry is None:
                return f"unexpected inference input '{tensor.name}' for model '{request.model_name}'"
            if tensor.datatype != entry.data_type:
                return f"inference input '{tensor.name}' data-type is '{tensor.datatype}'"
            if len(tensor.shape) != 2 or not (entry.many or tensor.shape[1] == 1):
                return f"unexpected shape for input '{tensor.name}'"
            size = _SIZES.get(tensor.datatype)
            if size is not None and len(raw) != math.prod(tensor.shape) * size:
                return f"input byte size mismatch for input '{tensor.name}'"
        if len({tensor.shape[0] for tensor in request.inputs}) > 1:
            return "input 'max_tokens' batch size does not match other inputs"
        missing = {each.name for each in inputs_of(self.contract) if each.required_until >= self.contract} - {
            tensor.name for tensor in request.inputs
        }
        return f"[request id: {request.id}] expected {sorted(missing)} inputs" if missing else None
