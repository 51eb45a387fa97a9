"""Log probabilities of the tokens of an answer, and of the likeliest ones in the place of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .generation import Piece

_LEAST = -9999.0
"""OpenAI's value for a token that is out of the question. JSON has no infinity."""


@dataclass(frozen=True)
class TokenLogProb:
    """A token by its bytes, and the `top` ones beside it."""

    token: bytes
    log_prob: float
    top: tuple[tuple[bytes, float], ...] = ()

    @property
    def text(self) -> str:
        """What is not a whole character by itself has no text of its own: that part is U+FFFD."""
        return _text(self.token)

    @property
    def characters(self) -> int:
        """How many begin in it. A byte within a character of UTF-8 has the form 10xxxxxx."""
        return sum(byte & 0xC0 != 0x80 for byte in self.token)


def tokens_of(piece: Piece) -> list[TokenLogProb]:
    """The tokens of a piece."""
    tops = piece.top or ((),) * len(piece.tokens)
    return [
        TokenLogProb(token, _finite(value), tuple((other, _finite(its)) for other, its in top))
        for token, value, top in zip(piece.tokens, piece.log_probs, tops, strict=True)
    ]


def _finite(value: float) -> float:
    return value if value > _LEAST else _LEAST


def _text(token: bytes) -> str:
    return token.decode(errors="replace")


def chat_log_probs(tokens: Sequence[TokenLogProb]) -> dict[str, object]:
    """In the form of a chat."""
    return {
        "content": [
            {**_entry(token.token, token.log_prob), "top_logprobs": [_entry(*each) for each in token.top]}
            for token in tokens
        ],
        "refusal": None,
    }


def _entry(token: bytes, log_prob: float) -> dict[str, object]:
    return {"token": _text(token), "logprob": log_prob, "bytes": list(token)}


def completion_log_probs(tokens: Sequence[TokenLogProb], offset: int) -> dict[str, object]:
    """In the form of a completion. `offset` is where in the text of the answer the first token begins."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += token.characters
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "text_offset": offsets,
        "top_logprobs": [_by_text(token) for token in tokens] if any(token.top for token in tokens) else None,
    }


def _by_text(token: TokenLogProb) -> dict[str, float]:
    """The chosen one is among them, likely or not."""
    return {_text(other): log_prob for other, log_prob in token.top} | {token.text: token.log_prob}
