"""The way in over gRPC: Triton's own service for public names and releases. All other methods are not implemented."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from deployments.gateway.bodies import BODY_SECONDS
from deployments.gateway.call import TRACE_HEADERS, Caller
from deployments.gateway.front import Front
from deployments.gateway.http_door import ID_HEADER, SESSION_HEADER
from deployments.gateway.messages import (
    EMPTY_FINAL,
    SERVICE,
    InferRequest,
    Message,
    ModelNamed,
    answer,
    parse_type,
    stream_error,
    stream_response,
)
from deployments.gateway.refusals import retry_after, status_of, unexpected
from deployments.gateway.sending import Sending
from deployments.gateway.triton import LARGEST_ANSWER
from deployments.gateway.triton_routes import EXTENSIONS, only_response, require_version, version
from infra.errors import EnginehouseError, GatewayError

grpc: Any = importlib.import_module("grpc")
aio: Any = importlib.import_module("grpc.aio")

STREAM_SECONDS = 600.0
"""How long a stream may stay open without a request that runs on it."""
_MOST_OF_A_STREAM = 256
"""Requests that run at once on one stream: clients of Triton send all of theirs over one."""


@dataclass(frozen=True)
class GrpcLimits:
    """`largest` in bytes of a message, `calls` and `connections` at once, times in seconds."""

    largest: int
    calls: int
    connections: int
    body_s: float = BODY_SECONDS
    stream_s: float = STREAM_SECONDS


def grpc_server(front: Front, limits: GrpcLimits) -> Any:
    """A server of `grpc.aio` that answers for `front`; its ports are the caller's to add."""
    options = (
        ("grpc.max_receive_message_length", limits.largest),
        ("grpc.max_send_message_length", LARGEST_ANSWER),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.max_concurrent_streams", limits.calls),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_connection_idle_ms", int(limits.stream_s * 1000)),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.so_reuseport", 0),
    )
    server = aio.server(options=options, maximum_concurrent_rpcs=limits.calls)
    server.add_generic_rpc_handlers((_Service(front, limits).handler(),))
    return server


class _Service:
    def __init__(self, front: Front, limits: GrpcLimits) -> None:
        self._front = front
        self._limits = limits

    def handler(self) -> Any:
        named: Mapping[str, Callable[[ModelNamed, Any], Coroutine[Any, Any, Message]]] = {
            "ModelMetadata": self._metadata,
            "ModelConfig": self._config,
            "ModelReady": self._model_ready,
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server,
        }
        handlers: dict[str, Any] = {
            method: grpc.unary_unary_rpc_method_handler(
                _refusing(handle),
                request_deserializer=parse_type(f"{method}Request").FromString,
                response_serializer=parse_type(f"{method}Response").SerializeToString,
            )
            for method, handle in named.items()
        }
        # As a stream of one request: so the key is looked at before the request is read, and reading it has a bound.
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            _refusing(self._infer),
            request_deserializer=parse_type("ModelInferRequest").FromString,
            response_serializer=parse_type("ModelInferResponse").SerializeToString,
        )
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            _refusing(self._stream),
            request_deserializer=parse_type("ModelInferRequest").FromString,
            response_serializer=parse_type("ModelStreamInferResponse").SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _infer(self, requests: AsyncIterator[InferRequest], context: Any) -> Message:
        with self._front.call(_caller(context)) as call:
            try:
                async with asyncio.timeout(self._limits.body_s):
                    request = await anext(requests)
            except TimeoutError as error:
                raise GatewayError("the request did not come in time", code="body-slow") from error
            except StopAsyncIteration as error:
                raise GatewayError("no request came", code="request-malformed") from error
            require_version(request.model_version)
            self._front.named(call, request.model_name)
            return await only_response(self._front, call, request)

    async def _stream(self, requests: AsyncIterator[InferRequest], context: Any) -> None:
        """Each request of the stream by itself; what is wrong with one is a response, as Triton has it."""
        caller = _caller(context)
        self._front.check(caller)
        stream = _Stream(context)
        await stream.sending.watch(self._requests_of_stream(requests, caller, stream))

    async def _requests_of_stream(self, requests: AsyncIterator[InferRequest], caller: Caller, stream: _Stream) -> None:
        room = asyncio.Semaphore(_MOST_OF_A_STREAM)
        try:
            async with asyncio.TaskGroup() as group:
                while (request := await self._next(requests, stream)) is not None:
                    await room.acquire()
                    stream.running += 1
                    task = group.create_task(self._one_of_stream(request, caller, stream))
                    task.add_done_callback(lambda _: room.release())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _next(self, requests: AsyncIterator[InferRequest], stream: _Stream) -> InferRequest | None:
        """The next request; None once the client has sent its last, or none for long while nothing runs."""
        coming = asyncio.ensure_future(anext(requests, None))
        try:
            while not (await asyncio.wait((coming,), timeout=self._limits.stream_s))[0]:
                if not stream.running:
                    return None
            return coming.result()
        finally:
            coming.cancel()

    async def _one_of_stream(self, request: InferRequest, caller: Caller, stream: _Stream) -> None:
        id = request.id
        wants_final = EMPTY_FINAL in request.parameters and request.parameters[EMPTY_FINAL].bool_param
        try:
            with self._front.call(caller) as call:
                require_version(request.model_version)
                self._front.named(call, request.model_name)
                async with aclosing(self._front.stream(call, request)) as responses:
                    async for response in responses:
                        if response.outputs or wants_final:
                            await stream.write(stream_response(response))
        except EnginehouseError as error:
            if error.code == "client-left":
                raise
            await stream.write(stream_error(error.message, id))
        finally:
            stream.running -= 1

    async def _metadata(self, request: ModelNamed, context: Any) -> Message:
        with self._front.call(_caller(context)) as call:
            require_version(request.version)
            self._front.named(call, request.name)
            return (await self._front.contract(call)).metadata(request.name)

    async def _config(self, request: ModelNamed, context: Any) -> Message:
        with self._front.call(_caller(context)) as call:
            require_version(request.version)
            self._front.named(call, request.name)
            return (await self._front.contract(call)).config(request.name)

    async def _model_ready(self, request: ModelNamed, context: Any) -> Message:
        with self._front.call(_caller(context)) as call:
            require_version(request.version)
            return answer("ModelReadyResponse", ready=bool(self._front.named(call, request.name).nodes))

    async def _live(self, request: ModelNamed, context: Any) -> Message:
        return answer("ServerLiveResponse", live=True)

    async def _ready(self, request: ModelNamed, context: Any) -> Message:
        return answer("ServerReadyResponse", ready=self._front.ready)

    async def _server(self, request: ModelNamed, context: Any) -> Message:
        return answer("ServerMetadataResponse", name="enginehouse", version=version(), extensions=EXTENSIONS)


class _Stream:
    """What goes out on one stream, of whose requests several run at once."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self.sending = Sending()
        self.running = 0

    async def write(self, message: Message) -> None:
        async with self._lock:
            self.sending.begin()
            await self._context.write(message)
            self.sending.end()


def _refusing(handle: Callable[[Any, Any], Coroutine[Any, Any, Message | None]]) -> Callable[[Any, Any], Any]:
    """The handler, whose errors end the call with their status."""

    async def handled(request: Any, context: Any) -> Message | None:
        try:
            return await handle(request, context)
        except Exception as found:
            error = found if isinstance(found, EnginehouseError) else unexpected(found)
            wait = retry_after(error)
            metadata = (("enginehouse-code", error.code), *((("retry-after", str(wait)),) if wait is not None else ()))
            await context.abort(getattr(grpc.StatusCode, status_of(error).grpc), error.message, metadata)
        return None

    return handled


def _caller(context: Any) -> Caller:
    """Of the call's metadata and deadline."""
    given = cast("dict[str, str | bytes]", dict(context.invocation_metadata() or ()))
    text = {name: value for name, value in given.items() if isinstance(value, str)}
    return Caller(
        text.get("authorization"),
        text.get(ID_HEADER),
        text.get(SESSION_HEADER, ""),
        context.time_remaining(),
        trace={name: text[name] for name in TRACE_HEADERS if name in text},
    )
