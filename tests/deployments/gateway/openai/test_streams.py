"""Several generations as one, and what becomes of them when the reader leaves or one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deployments.gateway.openai.generation import GenerationFailed, Piece
from deployments.gateway.openai.streams import Chunks, Head, together


class Generations:
    """Generations without an end, of which it is known how many pieces were taken and which were closed."""

    def __init__(self, fails: int | None = None) -> None:
        self.taken: dict[int, int] = {}
        self.closed: set[int] = set()
        self._fails = fails

    async def one(self, number: int) -> AsyncGenerator[Piece, None]:
        try:
            while True:
                await asyncio.sleep(0)
                self.taken[number] = self.taken.get(number, 0) + 1
                if number == self._fails and self.taken[number] == 3:
                    raise GenerationFailed("internal", "broken")
                yield Piece("x", 1, 1)
        finally:
            self.closed.add(number)


@pytest.mark.parametrize("count", [1, 3])
def test_all_generations_are_closed_when_the_reader_leaves(count: int) -> None:
    async def leave() -> None:
        async with aclosing(together([generations.one(number) for number in range(count)])) as pieces:
            got = {await anext(pieces) for _ in range(2 * count)}
        assert {number for number, _ in got} == set(range(count))
        assert generations.closed == set(range(count))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    generations = Generations()
    asyncio.run(leave())


@pytest.mark.parametrize("count", [1, 3])
def test_one_that_fails_ends_them_all(count: int) -> None:
    async def fail() -> None:
        async with aclosing(together([generations.one(number) for number in range(count)])) as pieces:
            with pytest.raises(GenerationFailed):
                async for _ in pieces:
                    pass
        assert generations.closed == set(range(count))

    generations = Generations(fails=0)
    asyncio.run(fail())


def test_a_slow_reader_holds_the_generations_back() -> None:
    async def wait() -> None:
        async with aclosing(together([generations.one(number) for number in range(3)])) as pieces:
            await anext(pieces)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert sum(generations.taken.values()) < 20

    generations = Generations()
    asyncio.run(wait())


def test_chunks_are_one_line_of_ascii() -> None:
    chunks = Chunks("chat.completion.chunk", Head("i", "m\n\u2028é", 1), include_usage=False)
    assert chunks.choice({"text": "\r\n\u0085🙂"}) == (
        b'data: {"id":"i","object":"chat.completion.chunk","created":1,"model":"m\\n\\u2028\\u00e9",'
        b'"choices":[{"text":"\\r\\n\\u0085\\ud83d\\ude42"}]}\n\n'
    )
