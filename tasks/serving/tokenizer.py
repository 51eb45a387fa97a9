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
