"""What the serving code asks of a tokenizer; those of transformers answer to it as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """A loaded tokenizer."""

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool) -> str: ...

    def encode(self, text: str, /, *, add_special_tokens: bool) -> list[int]: ...

    def convert_ids_to_tokens(self, token_id: int, /) -> str | None:
        """The token as the vocabulary spells it; None for a number outside of it."""
        ...


_BEFORE = ("\n", ".", "a")
"""Text to put before another, to see its tokens there. One does, unless it melts into one token with the text."""


def encoded_after(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """The tokens of a text right after other text, where no tokenizer puts a space before it; None if it melts."""
    for before in _BEFORE:
        first = tokenizer.encode(before, add_special_tokens=False)
        ids = tokenizer.encode(before + text, add_special_tokens=False)
        if first and ids[: len(first)] == first:
            return ids[len(first) :]
    return None
