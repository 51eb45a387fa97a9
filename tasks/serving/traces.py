"""What `llm` adds to a trace: a span of each request, with the time until its first token and that of the others.

Its place is below the span that Triton made of the same request. That one ends when `llm` has taken the request over.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from .contract import Answer, GenerationRequest
from .engine import Engine, Piece
from .otlp import Sender, Span, Value
from .runner import FailureCode, Reply

_SERVICE = "enginehouse-llm"
_RECORDED = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f][13579bdf]")
"""A `traceparent` with the flag that says so."""

_running: ContextVar[TracedReply | None] = ContextVar("running", default=None)
"""The request whose rows an engine generates: the runner starts them in the context in which they were submitted."""


class Traces:
    """The spans of one model, `release` by its name. `say` is told once if the collector is away."""

    def __init__(self, environment: Mapping[str, str], release: str, say: Callable[[str], object]) -> None:
        self._release = release
        self._sender = Sender(environment, environment.get("OTEL_SERVICE_NAME") or _SERVICE, say)

    def traced(self, trace: Any, reply: Reply) -> Reply:
        """The reply, which ends the span of its request if Triton records one. `trace` is the request's."""
        # Before 24.03 it cannot be asked.
        context = trace.get_context() if hasattr(trace, "get_context") else None
        found = _RECORDED.fullmatch(str(json.loads(context).get("traceparent", ""))) if context else None
        traced = None if found is None else TracedReply(reply, self._sender, found[1], found[2], self._release)
        _running.set(traced)
        return reply if traced is None else traced

    def traced_engine(self, engine: Engine) -> Engine:
        return TracedEngine(engine)

    def close(self) -> None:
        self._sender.close()


class TracedReply:
    """A reply, and the spans of its request."""

    def __init__(self, reply: Reply, sender: Sender, trace_id: str, parent: str, release: str) -> None:
        self._reply = reply
        self._sender = sender
        self._trace_id, self._parent = trace_id, parent
        self._release = release
        self._began = time.time_ns()
        self._clock = time.monotonic_ns()
        self._first = 0
        self._input_tokens = self._output_tokens = 0

    def came(self, piece: Piece, *, first: bool, streams: bool) -> None:
        """Count a piece of an answer, the `first` one of its row. Those of one that `streams` not may come late."""
        if first:
            self._input_tokens += piece.input_tokens
            if streams and not self._first:
                self._first = self._now()
        self._output_tokens += piece.output_tokens

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        self._reply.send(answers, final=final)
        if final:
            self._end("", tuple(answer.finish_reason or "" for answer in answers))

    def fail(self, code: FailureCode, message: str) -> None:
        self._reply.fail(code, message)
        self._end(code, ())

    def is_cancelled(self) -> bool:
        return self._reply.is_cancelled()

    def _end(self, error: str, finish_reasons: tuple[str, ...]) -> None:
        ended, first = self._now(), self._first
        attributes: dict[str, Value] = {
            "enginehouse.release": self._release,
            "gen_ai.usage.input_tokens": self._input_tokens,
            "gen_ai.usage.output_tokens": self._output_tokens,
        }
        attributes |= {"error.type": error} if error else {"gen_ai.response.finish_reasons": finish_reasons}
        parts = (("first token", self._began, first), ("generation", first, ended)) if first else ()
        whole = Span(self._trace_id, _new_id(), self._parent, "llm", self._began, ended, attributes, error)
        self._sender.put(
            whole,
            *(Span(self._trace_id, _new_id(), whole.id, name, began, ended, {}) for name, began, ended in parts),
        )

    def _now(self) -> int:
        """By the monotonic clock, from the beginning on: another one may be set meanwhile."""
        return self._began + time.monotonic_ns() - self._clock


class TracedEngine:
    """An engine whose pieces are counted for the traces of their requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        traced, first = _running.get(), True
        async with aclosing(self._engine.generate(request)) as pieces:
            async for piece in pieces:
                if traced is not None:
                    traced.came(piece, first=first, streams=request.stream)
                    first = False
                yield piece

    def cache_usage(self) -> float | None:
        return self._engine.cache_usage()

    async def close(self) -> None:
        await self._engine.close()


def _new_id() -> str:
    return secrets.token_hex(8)
