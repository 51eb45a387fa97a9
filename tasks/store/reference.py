"""What an artifact of the kind `reference` holds: what weights say before anything is quantized, place by place.

One is made once per weights, kind, passages and positions, which its identity names.
"""

from __future__ import annotations

from pydantic import Field

from tasks.store.record import Record

TOKENS_FILE = "tokens.json"
"""The one file of the artifact."""


class ReferenceToken(Record):
    """The next token at one place."""

    passage: str
    """Name of the text, which it has once in its set."""
    cut: int = Field(ge=1)
    """How many characters of the text came before."""
    text: str
    tokens: int = Field(ge=0)
    """1, or 0 where the answer ended. The text of part of a character is empty too."""


class ReferenceTokens(Record):
    """All places of all passages."""

    kind: str
    """What answered: `llamacpp`, `transformers`."""
    tokens: tuple[ReferenceToken, ...]
