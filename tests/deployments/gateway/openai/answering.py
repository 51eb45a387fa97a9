"""Pieces as a node sends them, and answers made of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from deployments.gateway.openai.chat import parse_chat
from deployments.gateway.openai.chat_answers import chat_answer, chat_stream
from deployments.gateway.openai.completion_answers import completion_answer, completion_stream
from deployments.gateway.openai.completions import parse_completion
from deployments.gateway.openai.generation import FinishReason, Piece
from deployments.gateway.openai.streams import Head, encoded, together
from tasks.targets.parsers import ModelParsers

HEAD = Head("chatcmpl-1", "llama", 1_700_000_000)


def pieces(*texts: str, reason: FinishReason = "stop") -> list[Piece]:
    """One token a piece, of a prompt of 5; the end token has no text of its own."""
    return [*(Piece(text, 5, 1) for text in texts), Piece("", 5, 1, finish_reason=reason)]


async def generation(pieces: Sequence[Piece | Exception]) -> AsyncGenerator[Piece, None]:
    for piece in pieces:
        await asyncio.sleep(0)
        if isinstance(piece, Exception):
            raise piece
        yield piece


def chat(
    *generations: Sequence[Piece | Exception], parsers: ModelParsers | None = None, **fields: Any
) -> dict[str, Any]:
    """The whole answer, as a client gets it."""
    request = parse_chat(
        {"model": "llama", "messages": [{"role": "user", "content": "?"}], "n": len(generations), **fields},
        parsers or ModelParsers(),
    )
    answer = asyncio.run(chat_answer(request, HEAD, together([generation(each) for each in generations])))
    return json.loads(encoded(answer))


def chat_events(
    *generations: Sequence[Piece | Exception], parsers: ModelParsers | None = None, **fields: Any
) -> list[Any]:
    """The chunks of a stream, parsed; `[DONE]` as it is."""
    messages = [{"role": "user", "content": "?"}]
    document = {"model": "llama", "messages": messages, "n": len(generations), "stream": True, **fields}
    request = parse_chat(document, parsers or ModelParsers())
    return asyncio.run(_events(chat_stream(request, HEAD, together([generation(each) for each in generations]))))


def completion(*generations: Sequence[Piece | Exception], **fields: Any) -> dict[str, Any]:
    request = parse_completion({"model": "llama", "prompt": "?", **fields})
    assert len(request.generations) == len(generations)
    answer = asyncio.run(completion_answer(request, HEAD, together([generation(each) for each in generations])))
    return json.loads(encoded(answer))


def completion_events(*generations: Sequence[Piece | Exception], **fields: Any) -> list[Any]:
    request = parse_completion({"model": "llama", "prompt": "?", "stream": True, **fields})
    stream = completion_stream(request, HEAD, together([generation(each) for each in generations]))
    return asyncio.run(_events(stream))


async def _events(stream: AsyncGenerator[bytes, None]) -> list[Any]:
    events: list[Any] = []
    async with aclosing(stream):
        async for chunk in stream:
            assert chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2
            assert chunk.isascii()
            data = chunk.removeprefix(b"data: ")
            events.append("[DONE]" if data == b"[DONE]\n\n" else json.loads(data))
    return events
