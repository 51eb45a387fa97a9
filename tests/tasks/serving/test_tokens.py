"""Pieces of text out of the tokens of an engine, however many of them come at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from tasks.serving.engine import Piece
from tasks.serving.tokens import Tokens, pieces
from tests.tasks.serving.small_tokenizers import CORPUS, byte_level

TEXT = CORPUS[3]
"""Of characters that are several tokens each."""


def answer(batches: Sequence[Sequence[Tokens]], *stop_words: str) -> list[Piece]:
    tokenizer = byte_level()
    end_id: int = tokenizer.tokenizer.token_to_id("</s>")

    async def come() -> AsyncGenerator[Sequence[Tokens]]:
        for batch in batches:
            yield batch

    async def read() -> list[Piece]:
        asked = pieces(
            come(), tokenizer, stop_words=stop_words, end_ids=(end_id,), input_tokens=3, most_tokens=len(ids(TEXT))
        )
        return [piece async for piece in asked]

    return asyncio.run(read())


def ids(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False)


@pytest.mark.parametrize("at_once", [1, 2, 5, 1000])
@pytest.mark.parametrize("stop_words", [(), ("STOP",)])
@pytest.mark.parametrize("scored", [False, True])
def test_tokens_that_come_together_say_the_same(at_once: int, stop_words: tuple[str, ...], scored: bool) -> None:
    tokens = [Tokens((token_id,), (-1.0,) if scored else ()) for token_id in ids(TEXT)]
    said = answer([tokens[start : start + at_once] for start in range(0, len(tokens), at_once)], *stop_words)
    assert "".join(piece.text for piece in said) == TEXT
    assert sum(piece.output_tokens for piece in said) == len(tokens)
    assert sum(len(piece.log_probs) for piece in said) == (len(tokens) if scored else 0)
    assert [piece.finish_reason for piece in said] == [None] * (len(said) - 1) + ["length"]
    assert len(said) <= 1 + -(-len(tokens) // at_once)


def test_an_end_among_others_is_no_text() -> None:
    end_id: int = byte_level().tokenizer.token_to_id("</s>")
    said = answer([[Tokens((*ids("un, deux"), end_id))]])
    assert ("".join(piece.text for piece in said), said[-1].finish_reason) == ("un, deux", "stop")
    assert sum(piece.output_tokens for piece in said) == len(ids("un, deux"))
