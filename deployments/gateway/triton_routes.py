"""Triton's own protocol over HTTP, for public names and releases: generate, infer, metadata and readiness."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from pydantic import JsonValue
from starlette.requests import Request
from starlette.routing import Route

from deployments.gateway.bodies import Bodies
from deployments.gateway.call import Call
from deployments.gateway.contract import VERSION
from deployments.gateway.front import Front
from deployments.gateway.generate import document, generate_request
from deployments.gateway.http_door import Answer, Door, Reply
from deployments.gateway.infer import HEADER_LENGTH, answer_infer, parse_infer
from deployments.gateway.json_body import parse_object
from deployments.gateway.messages import InferRequest, InferResponse, Message
from deployments.gateway.rows import ask_for_rows, merged, rows_of
from infra.errors import GatewayError

_json_format: Any = importlib.import_module("google.protobuf.json_format")

EXTENSIONS = ("generate", "binary_tensor_data", "parameters")
"""Of Triton's protocol, beyond the core."""


def triton_routes(front: Front, bodies: Bodies) -> list[Route]:
    """What begins with `/v2`."""
    routes = _Routes(front)
    answers: Mapping[tuple[str, str], Answer] = {
        ("POST", "/generate"): routes.generate,
        ("POST", "/generate_stream"): routes.generate_stream,
        ("POST", "/infer"): routes.infer,
        ("GET", ""): routes.metadata,
        ("GET", "/config"): routes.config,
        ("GET", "/ready"): routes.model_ready,
    }
    made = [
        Route("/v2", Door(front, bodies, routes.server), methods=["GET"]),
        Route("/v2/models", Door(front, bodies, routes.models), methods=["GET"]),
    ]
    for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        for (method, path), answer in answers.items():
            made.append(Route(model + path, Door(front, bodies, answer), methods=[method]))
    return made


class _Routes:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def generate(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        self._name(call, request)
        given = generate_request(await self._front.contract(call), parse_object(body))
        await reply.document(document(await only_response(self._front, call, given)))

    async def generate_stream(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        self._name(call, request)
        given = generate_request(await self._front.contract(call), parse_object(body))
        async with aclosing(self._front.stream(call, given)) as responses:
            async for response in responses:
                if response.outputs:
                    await reply.event(document(response))
        await reply.end()

    async def infer(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        self._name(call, request)
        given, wanted = parse_infer(body, request.headers.get(HEADER_LENGTH))
        answer, head = answer_infer(await only_response(self._front, call, given), wanted)
        if head is None:
            await reply.body(answer, "application/json")
        else:
            await reply.body(answer, "application/octet-stream", headers=((HEADER_LENGTH, str(head)),))

    async def metadata(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        name = self._name(call, request)
        await reply.document(_as_json((await self._front.contract(call)).metadata(name)))

    async def config(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        name = self._name(call, request)
        answer = _as_json((await self._front.contract(call)).config(name))
        await reply.document(answer["config"] if isinstance(answer, dict) else answer)

    async def model_ready(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        places = self._front.named(call, _model(request))
        await reply.body(b"", "text/plain", 200 if places.nodes else 400)

    async def server(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        await reply.document({"name": "enginehouse", "version": version(), "extensions": list(EXTENSIONS)})

    async def models(self, call: Call, request: Request, body: bytes, reply: Reply) -> None:
        await reply.document({"models": [{"name": model} for model in self._front.models(call.key)]})

    def _name(self, call: Call, request: Request) -> str:
        self._front.named(call, _model(request))
        return _model(request)


def _model(request: Request) -> str:
    """The model of the path. Raises GatewayError, code `version-unknown`."""
    require_version(str(request.path_params.get("version", "")))
    return str(request.path_params["model"])


def require_version(given: str) -> None:
    """Raise GatewayError, code `version-unknown`, for a version of a model that is not the only one."""
    if given not in ("", VERSION):
        raise GatewayError(
            f"there is no version {given[:20]!r}: each model has the version {VERSION}",
            hint="a release is named in the model: NAME@7",
            code="version-unknown",
        )


async def only_response(front: Front, call: Call, request: InferRequest) -> InferResponse:
    """The one response of a model, or one made of those of its rows.

    Raises GatewayError, code `answers-many`, if it has more than one for each row.
    """
    rows = rows_of(request)
    added = rows > 1 and ask_for_rows(request, await front.contract(call))
    found: list[InferResponse] = []
    last: InferResponse | None = None
    async with aclosing(front.stream(call, request)) as responses:
        async for last in responses:
            found += [last] if last.outputs else []
            if len(found) > rows:
                raise GatewayError(
                    "the model answers in several pieces",
                    hint="ask generate_stream or ModelStreamInfer, or without `stream`",
                    code="answers-many",
                )
    if len(found) > 1:
        return merged(found, without_row=added)
    assert last is not None  # a stream ends by a response, or by an error
    return found[0] if found else last


def version() -> str:
    return importlib.metadata.version("enginehouse")


def _as_json(message: Message) -> JsonValue:
    return _json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
