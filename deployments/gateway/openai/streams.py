"""Streams: pieces of several generations as one, and chunks as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from .generation import Piece

Numbered: TypeAlias = tuple[int, Piece]
"""A piece, and the number of its generation in the request."""

DONE = b"data: [DONE]\n\n"

# `json.dumps` makes an encoder at each call that has options; a stream has a call a token.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

_WAITING = 8
"""Pieces that wait for a client that is slow to read, before the generations wait too."""


@dataclass(frozen=True)
class Head:
    """What all chunks of a stream, and a whole answer, begin with. `created` is in seconds since 1970."""

    id: str
    model: str
    created: int


def encoded(document: object) -> bytes:
    """JSON in ASCII: there are clients that take U+2028 for the end of a line."""
    return _ENCODER.encode(document).encode()


def event(document: object) -> bytes:
    """A server-sent event."""
    return b"data: " + encoded(document) + b"\n\n"


class Chunks:
    """Makes the chunks of one stream. With `include_usage`, every chunk but the last says that it has none."""

    def __init__(self, kind: str, head: Head, *, include_usage: bool) -> None:
        self.include_usage = include_usage
        fields = {"id": head.id, "object": kind, "created": head.created, "model": head.model}
        # The same for every chunk, so it is written once.
        self._begin = b"data: " + encoded(fields)[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def choice(self, choice: Mapping[str, object]) -> bytes:
        return self._begin + encoded(choice) + self._end

    def usage(self, usage: Mapping[str, int]) -> bytes:
        return self._begin + b'],"usage":' + encoded(usage) + b"}\n\n"


async def together(generations: Sequence[AsyncIterator[Piece]]) -> AsyncGenerator[Numbered, None]:
    """The pieces of all generations as they come, each with the number of its generation.

    Raises what the first that fails raises. All are closed at the end, also when the reader leaves.
    """
    if len(generations) == 1:
        async with aclosing(_closable(generations[0])) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    waiting: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue(_WAITING)
    tasks = [
        asyncio.create_task(_pass_on(number, generation, waiting)) for number, generation in enumerate(generations)
    ]
    try:
        running = len(tasks)
        while running:
            got = await waiting.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                running -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(
    number: int, generation: AsyncIterator[Piece], waiting: asyncio.Queue[Numbered | BaseException | None]
) -> None:
    try:
        async with aclosing(_closable(generation)) as pieces:
            async for piece in pieces:
                await waiting.put((number, piece))
        await waiting.put(None)
    except Exception as error:
        await waiting.put(error)


async def _closable(generation: AsyncIterator[Piece]) -> AsyncGenerator[Piece, None]:
    """The same pieces. Closing it closes the generation, if that can be closed."""
    try:
        async for piece in generation:
            yield piece
    finally:
        if isinstance(generation, AsyncGenerator):
            await generation.aclose()
