"""Answers that begin within reasoning, because the chat template has opened it: DeepSeek-R1's ends with `<think>\\n`.

Who reads such an answer has to know. So it begins with what opened it, where special tokens are wanted in the text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from .engine import Piece
from .tokenizer import Tokenizer

_MARK = "<think>"
_MARK_TOKENS = 12
"""The last tokens of a prompt that may hold the mark, with the white space behind it."""


def opened_by(prompt: str) -> str:
    """The end of a prompt that opens reasoning, empty where it does not."""
    return prompt[prompt.rindex(_MARK) :] if prompt.rstrip().endswith(_MARK) else ""


def opened_by_tokens(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The same of a prompt in tokens."""
    return opened_by(tokenizer.decode(prompt[-_MARK_TOKENS:], skip_special_tokens=False))


async def beginning_with(opening: str, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """The same pieces; the first one begins with `opening`."""
    async with aclosing(pieces):
        async for piece in pieces:
            yield replace(piece, text=opening + piece.text) if opening else piece
            opening = ""
