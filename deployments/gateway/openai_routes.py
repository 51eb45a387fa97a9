"""OpenAI's API over HTTP, for public names and releases: models, chats and completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from typing import cast

from pydantic import JsonValue
from starlette.requests import Request
from starlette.routing import Route

from deployments.gateway.bodies import Bodies
from deployments.gateway.call import Call
from deployments.gateway.front import Front
from deployments.gateway.generate import Given
from deployments.gateway.http_door import Door, Reply
from deployments.gateway.openai.bodies import Document, parse_body
from deployments.gateway.openai.chat import parse_chat
from deployments.gateway.openai.chat_answers import chat_answer, chat_stream
from deployments.gateway.openai.completion_answers import completion_answer, completion_stream
from deployments.gateway.openai.completions import parse_completion
from deployments.gateway.openai.errors import ApiError, Code, invalid
from deployments.gateway.openai.generation import FinishReason, Generation, GenerationFailed, Piece
from deployments.gateway.openai.models import model_entry, model_list
from deployments.gateway.openai.streams import Head, Numbered, together
from deployments.gateway.refusals import Refusal, retry_after
from deployments.gateway.tensors import Values
from infra.errors import EnginehouseError
from tasks.serving.failures import FailureCode
from tasks.targets.parsers import ModelParsers

_CODES: Mapping[str, Code] = {
    "body-large": "request-large",
    "deadline": "deadline",
    "gateway-ending": "unavailable",
    "key-missing": "key-invalid",
    "key-unknown": "key-invalid",
    "model-not-ready": "unavailable",
    "model-unknown": "model-unknown",
    "node-lost": "unavailable",
    "release-not-loaded": "model-unknown",
    "request-malformed": "request-invalid",
    "requests-limit": "requests-limited",
    "state-unknown": "unavailable",
    "tokens-limit": "tokens-limited",
}
"""The gateway's codes as those of the API; all others are `internal`."""

_FAILURES: Mapping[str, FailureCode] = {
    "context-length": "context-length",
    "deadline": "deadline",
    "model-busy": "unavailable",
    "model-cancelled": "cancelled",
    "model-failed": "internal",
    "triton-refused": "invalid",
}
"""What a release says of a request."""

_CONTRACT_1 = "serving.contract of its file is 1"

_MOST_PINS = 3
"""Releases that a request is made for, one after the other, where each is gone before it can answer."""

_Send = Callable[[Document, ModelParsers, Call, Reply], Coroutine[None, None, None]]


def openai_routes(front: Front, bodies: Bodies) -> list[Route]:
    """What begins with `/v1`."""
    routes = _Routes(front)
    doors = (
        ("/v1/models", routes.models, "GET"),
        ("/v1/models/{model:path}", routes.model, "GET"),
        ("/v1/chat/completions", routes.chat, "POST"),
        ("/v1/completions", routes.complete, "POST"),
    )
    return [Route(path, Door(front, bodies, answer, refusal), methods=[method]) for path, answer, method in doors]


def refusal(error: EnginehouseError) -> Refusal:
    """An error as OpenAI's clients know it."""
    told = error if isinstance(error, ApiError) else ApiError(_CODES.get(error.code, "internal"), error.message)
    wait = retry_after(error)
    headers = told.headers | ({} if wait is None else {"retry-after": str(wait)})
    return Refusal(cast(JsonValue, told.body()), told.status, tuple(headers.items()))


class _Routes:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def models(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        entries = [model_entry(model, 0) for model in self._front.models(call.key)]
        await reply.document(cast(JsonValue, model_list(entries)))

    async def model(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        name = str(request.path_params["model"])
        self._front.named(call, name)
        await reply.document(cast(JsonValue, model_entry(name, 0)))

    async def chat(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        await self._answer(call, body, reply, self._chat)

    async def complete(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        await self._answer(call, body, reply, self._complete)

    async def _chat(self, document: Document, parsers: ModelParsers, call: Call, reply: Reply) -> None:
        wanted = parse_chat(document, parsers)
        head, pieces = self._begun(call, "chatcmpl", wanted.model, wanted.generations)
        if wanted.stream:
            await _send(chat_stream(wanted, head, pieces), reply)
        else:
            await reply.document(cast(JsonValue, await chat_answer(wanted, head, pieces)))

    async def _complete(self, document: Document, parsers: ModelParsers, call: Call, reply: Reply) -> None:
        wanted = parse_completion(document)
        head, pieces = self._begun(call, "cmpl", wanted.model, wanted.generations)
        if wanted.stream:
            await _send(completion_stream(wanted, head, pieces), reply)
        else:
            await reply.document(cast(JsonValue, await completion_answer(wanted, head, pieces)))

    async def _answer(self, call: Call, body: bytes, reply: Reply, send: _Send) -> None:
        """Read the request as the release has it that answers it, and once more if that one goes before it could."""
        document = parse_body(body)
        if not call.session and isinstance(user := document.get("user"), str):
            call.session = user[:256]
        model = document.get("model")
        if not isinstance(model, str):
            raise invalid("'model' is missing, or no text", "model")
        self._front.named(call, model)
        for left in reversed(range(_MOST_PINS)):
            contract, parsers = await self._front.pin(call)
            try:
                if "messages" not in contract.inputs:
                    raise ApiError("request-invalid", f"'{model}' is served without this API ({_CONTRACT_1})")
                await send(document, parsers, call, reply)
                return
            except EnginehouseError as error:
                if not reply.begun and self._front.leave_canary(call, error):
                    continue
                if error.code != "release-not-loaded" or reply.begun or not left:
                    raise

    def _begun(
        self, call: Call, kind: str, model: str, generations: tuple[Generation, ...]
    ) -> tuple[Head, AsyncGenerator[Numbered]]:
        answers = [self._pieces(call, generation) for generation in generations]
        return Head(f"{kind}-{call.id}", model, int(time.time())), together(answers)

    async def _pieces(self, call: Call, generation: Generation) -> AsyncGenerator[Piece]:
        try:
            async with aclosing(self._front.generate(call, _given(generation))) as responses:
                async for values in responses:
                    yield _piece(values)
        except EnginehouseError as error:
            if (failure := _FAILURES.get(error.code)) is None:
                raise
            prompt = "prompt" if generation.messages is None else "messages"
            param = prompt if failure == "context-length" else None
            raise GenerationFailed(failure, error.message, param=param) from error


def _given(generation: Generation) -> dict[str, Given]:
    """The inputs that are to be sent. What asks for nothing is left out."""
    given: dict[str, Given] = {}
    for name, value in vars(generation).items():
        if isinstance(value, tuple):
            value = list(cast(tuple[Given, ...], value))
        if value is not None and value != "" and value != [] and (value is not False or name == "skip_special_tokens"):
            given[name] = value
    return given


def _piece(values: Values) -> Piece:
    reason = str(next(iter(values.get("finish_reason", [])), ""))
    tokens = tuple(_bytes(values, "output_tokens"))
    likeliest = tuple(zip(_bytes(values, "top_tokens"), _floats(values, "top_log_probs"), strict=True))
    width = len(likeliest) // len(tokens) if tokens else 0
    return Piece(
        text=str(values["text_output"][0]),
        num_input_tokens=_number(values, "num_input_tokens"),
        num_output_tokens=_number(values, "num_output_tokens"),
        log_probs=tuple(_floats(values, "output_log_probs")),
        tokens=tokens,
        top=tuple(_told(likeliest[at : at + width]) for at in range(0, len(likeliest), width)) if width else (),
        finish_reason=cast(FinishReason, reason) if reason else None,
    )


def _told(likeliest: tuple[tuple[bytes, float], ...]) -> tuple[tuple[bytes, float], ...]:
    """Without those that only fill a row up."""
    return tuple(each for each in likeliest if each != (b"", 0.0))


def _bytes(values: Values, name: str) -> Iterator[bytes]:
    return (str(value).encode(errors="surrogateescape") for value in values.get(name, []))


def _floats(values: Values, name: str) -> Iterator[float]:
    return (float(value) for value in values.get(name, []))


def _number(values: Values, name: str) -> int:
    return int(next(iter(values.get(name, [])), 0))


async def _send(events: AsyncGenerator[bytes], reply: Reply) -> None:
    async with aclosing(events):
        async for event in events:
            await reply.event_bytes(event)
    await reply.end()
