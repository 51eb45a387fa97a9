"""Asks models on nodes over gRPC: one channel a node, one stream a request, ended as soon as nobody reads it."""

from __future__ import annotations

import asyncio
import importlib
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from deployments.gateway.leaving import Reader, cancel
from deployments.gateway.messages import (
    EMPTY_FINAL,
    FINAL,
    SERVICE,
    InferRequest,
    InferResponse,
    ModelMetadata,
    model_named,
    parse_type,
)
from deployments.gateway.places import Node
from infra.errors import GatewayError, TritonError
from tasks.serving.cancellation import CANCELLATION_ID
from tasks.serving.failures import FailureCode, without_code

grpc: Any = importlib.import_module("grpc")
aio: Any = importlib.import_module("grpc.aio")

LARGEST_ANSWER = 64 << 20
"""Bytes of one response: log probabilities of a batch, and a margin."""
_METADATA_SECONDS = 10.0
_LEAVE_SECONDS = 900.0
"""How long requests of a node that is gone from the state may still run."""
_OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.max_send_message_length", -1),  # the gateway's own limit was before
    ("grpc.enable_http_proxy", 0),
    # What a node may send ahead of a client that reads nothing. gRPC's own guess grew to 50 MB a stream.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A machine that lost its power answers no ping. Triton ends a connection with more than one in five minutes.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_NOT_THERE = ("unknown model", "is not ready", "no available versions", "Server is stopping", "is not healthy")
"""What Triton says if this node cannot answer now, and another one may. Errors in a stream have no code.

Source: `GetModel` of Triton's `core/src/server.cc`, and `pb_stub` of its Python backend for a process that has died.
"""
_GONE = ("is not healthy",)
"""Of these, what a request may hear that a model had begun to answer."""


_CODES: Mapping[FailureCode, str] = {
    "invalid": "triton-refused",
    "context-length": "context-length",
    "unavailable": "model-busy",
    "deadline": "deadline",
    "cancelled": "model-cancelled",
    "internal": "model-failed",
}


class NodeFailed(Exception):
    """The node did not answer. `begun`: it may have begun to; `connection`: nobody reached it."""

    def __init__(self, message: str, *, begun: bool, connection: bool) -> None:
        super().__init__(message)
        self.begun = begun
        self.connection = connection

    @property
    def absent(self) -> bool:
        """Whether the node lives and only does not have the model, or has it no more."""
        return not self.begun and not self.connection


@dataclass(frozen=True)
class _Open:
    """A channel, with what is called over it."""

    address: str
    channel: Any
    infer: Any
    metadata: Any

    @classmethod
    def to(cls, address: str) -> _Open:
        channel = aio.insecure_channel(address, options=_OPTIONS)
        # To Triton it is a stream of one request; so it is sent, and its end told, in one go.
        infer = channel.unary_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=parse_type("ModelInferRequest").SerializeToString,
            response_deserializer=parse_type("ModelStreamInferResponse").FromString,
        )
        metadata = channel.unary_unary(
            f"/{SERVICE}/ModelMetadata",
            request_serializer=parse_type("ModelMetadataRequest").SerializeToString,
            response_deserializer=parse_type("ModelMetadataResponse").FromString,
        )
        return cls(address, channel, infer, metadata)


class Channels:
    """The channels to nodes. A node's is replaced when its address changes, and closed when the node is gone."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Open] = {}
        self._ending: set[asyncio.Future[Any]] = set()
        self._calls: set[Any] = set()
        self.is_cut = False
        """Whether every request has been ended, and no other begins."""

    def keep(self, nodes: Iterable[Node]) -> None:
        """Let go of all others, once what runs on them has ended."""
        for key in self._open.keys() - {node.key for node in nodes}:
            self._leave(key)

    def cut(self) -> None:
        """End every request by an error, for good."""
        self.is_cut = True
        for call in self._calls:
            call.cancel()

    async def close(self) -> None:
        for task in self._ending:
            task.cancel()
        channels = [each.channel.close() for each in self._open.values()]
        await asyncio.gather(*self._ending, *channels, return_exceptions=True)
        self._open.clear()

    async def metadata(self, node: Node, *models: str) -> ModelMetadata:
        """What a node's Triton says of the first of these models that it knows.

        Raises NodeFailed, and TritonError if it refuses.
        """
        *others, last = models
        for model in others:
            try:
                return await self._metadata(node, model)
            except NodeFailed as failure:
                if not failure.absent:
                    raise
        return await self._metadata(node, last)

    async def _metadata(self, node: Node, model: str) -> ModelMetadata:
        request = model_named("ModelMetadataRequest", model)
        try:
            return cast(ModelMetadata, await self._to(node).metadata(request, timeout=_METADATA_SECONDS))
        except aio.AioRpcError as error:
            raise _failure(error) from error

    async def ask(
        self,
        node: Node,
        request: InferRequest,
        until: float,
        *,
        cancels: bool = False,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> AsyncGenerator[InferResponse]:
        """The responses of a model as they come; the last one says so by the parameter `triton_final_response`.

        `until` is the deadline on the monotonic clock. Leaving early cancels the request on the node: with `cancels` by
        an id that it gets, else by its call. Raises NodeFailed, TritonError, code `triton-refused` or `deadline`, and
        GatewayError, code `gateway-ending`.
        """
        if self.is_cut:
            raise ending()
        key = uuid.uuid4().hex if cancels else ""
        request.parameters[EMPTY_FINAL].bool_param = True
        request.parameters.pop(CANCELLATION_ID, None)
        if key:
            request.parameters[CANCELLATION_ID].string_param = key
        opened = self._to(node)
        reader = Reader(opened.infer(request, metadata=metadata))
        self._calls.add(reader.call)
        ended = False
        try:
            while (piece := await reader.read(until)) is not None:
                if piece.error_message:
                    ended = True
                    raise _refusal(piece.error_message)
                ended = _is_final(piece.infer_response)
                yield piece.infer_response
                if ended:
                    return
            raise NodeFailed("the stream ended before the answer", begun=True, connection=True)
        except aio.AioRpcError as error:
            raise _failure(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.is_cut and task is not None and not task.cancelling():
                raise ending() from None
            raise
        finally:
            self._calls.discard(reader.call)
            if ended:
                self._keep(asyncio.ensure_future(reader.drain()))
            elif key:
                self._keep(asyncio.ensure_future(cancel(opened.infer, request.model_name, key, reader)))
            else:
                reader.call.cancel()

    def _to(self, node: Node) -> _Open:
        known = self._open.get(node.key)
        if known is None or known.address != node.grpc:
            self._leave(node.key)
            known = self._open[node.key] = _Open.to(node.grpc)
        return known

    def _leave(self, key: tuple[str, str]) -> None:
        if (known := self._open.pop(key, None)) is not None:
            self._keep(asyncio.ensure_future(known.channel.close(_LEAVE_SECONDS)))

    def _keep(self, task: asyncio.Future[Any]) -> None:
        """Until it is done: the event loop alone would let it go."""
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def ending() -> GatewayError:
    """The error of what a gateway that ends takes no more, or does not finish."""
    return GatewayError(
        "this gateway is ending", hint="ask again", code="gateway-ending", retryable=True, retry_after_s=1
    )


def _is_final(response: InferResponse) -> bool:
    """Whether no other response of its request comes after it."""
    return FINAL in response.parameters and response.parameters[FINAL].bool_param


def _refusal(message: str) -> NodeFailed | TritonError:
    """What an error in a stream means."""
    if any(words in message for words in _NOT_THERE):
        return NodeFailed(message, begun=any(words in message for words in _GONE), connection=False)
    said, code = without_code(message)
    return TritonError(said, code=_CODES[code] if code else "triton-refused")


def _failure(error: Any) -> NodeFailed | TritonError:
    code, details = error.code(), str(error.details() or "")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TritonError("the answer did not come in time", code="deadline")
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED):
        return TritonError(details, code="triton-refused")
    if code is grpc.StatusCode.NOT_FOUND:
        return NodeFailed(details, begun=False, connection=False)
    unreached = code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower() and "reset" not in details.lower()
    return NodeFailed(details or str(code), begun=not unreached, connection=True)
