"""What answers to chats and to completions have in common: pieces go to their choices, and the tokens are counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Protocol

from .errors import ApiError, of_failure
from .generation import GenerationFailed, Piece
from .streams import DONE, Chunks, Head, Numbered, event
from .usage import Usage


class Choice(Protocol):
    """One choice of an answer, as far as it has come."""

    def read(self, piece: Piece) -> object:
        """Takes the next piece."""
        ...

    def chunks(self, piece: Piece) -> Iterable[dict[str, object]]:
        """Takes the next piece. Returns the choices of the chunks that it makes."""
        ...

    def require_end(self) -> object:
        """Raises ApiError where the pieces ended before the answer did."""
        ...

    def body(self) -> dict[str, object]:
        """The choice of a whole answer."""
        ...


async def whole(
    kind: str, head: Head, choices: Sequence[Choice], usage: Usage, pieces: AsyncGenerator[Numbered, None]
) -> dict[str, object]:
    """The whole answer. Raises ApiError where a generation fails."""
    try:
        async with aclosing(pieces):
            async for number, piece in pieces:
                usage.add(number, piece)
                choices[number].read(piece)
    except GenerationFailed as error:
        raise of_failure(error) from error
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "choices": [choice.body() for choice in choices],
        "usage": usage.body(),
    }


async def stream(
    chunks: Chunks, choices: Sequence[Choice], usage: Usage, pieces: AsyncGenerator[Numbered, None]
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events.

    What fails before the first one raises ApiError, so that the answer can have its status. What fails later is told
    in an event, and ends the stream without `[DONE]`: it is not whole.
    """
    begun = False
    try:
        async with aclosing(pieces):
            async for number, piece in pieces:
                usage.add(number, piece)
                for choice in choices[number].chunks(piece):
                    yield chunks.choice(choice)
                    begun = True
        for choice in choices:
            choice.require_end()
        if chunks.include_usage:
            yield chunks.usage(usage.body())
        yield DONE
    except (GenerationFailed, ApiError) as error:
        told = of_failure(error) if isinstance(error, GenerationFailed) else error
        if not begun:
            raise told from error
        yield event(told.body())
