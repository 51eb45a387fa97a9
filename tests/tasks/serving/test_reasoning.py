"""Answers whose prompt has opened their reasoning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tasks.serving.engine import Piece
from tasks.serving.reasoning import beginning_with, opened_by, opened_by_tokens
from tests.tasks.serving.small_tokenizers import byte_level


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("<|Assistant|><think>\n", "<think>\n"),
        ("<think>", "<think>"),
        ("<think>\n\n</think>\n\n", ""),
        ("say <think> and go on", ""),
        ("", ""),
    ],
)
def test_what_opens_reasoning_is_the_end_of_the_prompt(prompt: str, opening: str) -> None:
    assert opened_by(prompt) == opening
    tokenizer = byte_level()
    assert opened_by_tokens(tokenizer, tokenizer.encode(prompt, add_special_tokens=False)) == opening


def test_the_first_piece_begins_with_it_and_has_no_more_tokens() -> None:
    async def pieces() -> AsyncGenerator[Piece]:
        yield Piece("Hm", (-0.5,), 1, 7)
        yield Piece(".", (-0.25,), 1, 7, "stop")

    async def read(opening: str) -> list[Piece]:
        return [piece async for piece in beginning_with(opening, pieces())]

    assert asyncio.run(read("<think>\n")) == [
        Piece("<think>\nHm", (-0.5,), 1, 7),
        Piece(".", (-0.25,), 1, 7, "stop"),
    ]
    assert [piece.text for piece in asyncio.run(read(""))] == ["Hm", "."]
