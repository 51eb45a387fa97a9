"""The way in over HTTP: a request is called, read, answered while its client listens, and refused in its own form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from pydantic import JsonValue
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from deployments.gateway.bodies import Bodies
from deployments.gateway.call import TRACE_HEADERS, Call, Caller
from deployments.gateway.front import Front
from deployments.gateway.refusals import Refusal, triton_refusal, unexpected
from deployments.gateway.sending import Sending
from infra.errors import EnginehouseError, GatewayError

SESSION_HEADER = "x-enginehouse-session"
ID_HEADER = "x-request-id"

# `json.dumps` makes one for each document.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)

Refuse = Callable[[EnginehouseError], Refusal]
"""An error as the clients of a protocol expect it."""


class Reply:
    """The answer to one request: a document, or events as they come."""

    def __init__(self, send: Send, refuse: Refuse) -> None:
        self._send = send
        self._refuse = refuse
        self.sending = Sending()
        self._begun = self._streams = self._ended = False
        self.id = ""

    @property
    def begun(self) -> bool:
        """Whether its client has got any of it."""
        return self._begun

    async def document(self, document: JsonValue, status: int = 200) -> None:
        await self.body(_json(document), "application/json", status)

    async def body(
        self, body: bytes, media_type: str, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        await self._start(status, media_type, (("content-length", str(len(body))), *headers))
        await self._part(body, more=False)
        self._ended = True

    async def event(self, document: JsonValue, status: int = 200) -> None:
        """One server-sent event. The first one decides on the status of the answer."""
        await self.event_bytes(b"data: " + _json(document) + b"\n\n", status)

    async def event_bytes(self, event: bytes, status: int = 200) -> None:
        """The same as it goes over the wire."""
        if not self._begun:
            self._streams = True
            await self._start(status, "text/event-stream; charset=utf-8", (("cache-control", "no-cache"),))
        await self._part(event, more=True)

    async def end(self) -> None:
        """The end of the events."""
        if self._begun and not self._ended:
            await self._part(b"", more=False)
            self._ended = True

    async def refuse(self, error: EnginehouseError) -> None:
        """Say the error: as the answer, or as the last event of one that has begun."""
        if error.code == "client-left" or self._ended:
            return
        if self._streams:
            await self.event(self._refuse(error).document)
            await self.end()
            return
        refusal = self._refuse(error)
        headers = refusal.headers
        if refusal.status == 401:
            headers = (*headers, ("www-authenticate", "Bearer"))
        await self.body(_json(refusal.document), "application/json", refusal.status, headers)

    async def _start(self, status: int, media_type: str, headers: tuple[tuple[str, str], ...]) -> None:
        self._begun = True
        named = (("content-type", media_type), (ID_HEADER, self.id), *headers)
        raw = [(name.encode(), value.encode()) for name, value in named if value]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _part(self, body: bytes, *, more: bool) -> None:
        self.sending.begin()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self.sending.end()


Answer = Callable[[Call, Request, bytes, Reply], Coroutine[Any, Any, None]]
"""Answers one request with this body."""


class Door:
    """An ASGI endpoint. `answer` has the whole body, and is cancelled as soon as its client leaves."""

    def __init__(self, front: Front, bodies: Bodies, answer: Answer, refuse: Refuse = triton_refusal) -> None:
        self._front = front
        self._bodies = bodies
        self._answer = answer
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, reply = Request(scope, receive), Reply(send, self._refuse)
        try:
            with self._front.call(_caller(request)) as call:
                reply.id = call.id
                async with self._bodies.read(request) as body:
                    leaving = asyncio.ensure_future(_left(receive))
                    await reply.sending.watch(self._answer(call, request, body, reply), leaving)
        except EnginehouseError as error:
            await _say(reply, error)
        except Exception as error:
            await _say(reply, unexpected(error))


def _caller(request: Request) -> Caller:
    headers = request.headers
    return Caller(
        headers.get("authorization"),
        headers.get(ID_HEADER),
        headers.get(SESSION_HEADER, ""),
        path=request.url.path,
        trace={name: headers[name] for name in TRACE_HEADERS if name in headers},
    )


async def _say(reply: Reply, error: EnginehouseError) -> None:
    with suppress(GatewayError):  # the client takes nothing
        await reply.sending.watch(reply.refuse(error))


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(document: JsonValue) -> bytes:
    return _ENCODER.encode(document).encode(errors="replace")
