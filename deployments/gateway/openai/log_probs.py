"""Log probabilities of the tokens of an answer.

Only those of chosen tokens are known, so there are never alternatives. A piece says with `token_texts` which text each
token has. Where it does not, and has several tokens, they are told as one, with the sum of their log probabilities: the
log probability of that text in these tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .generation import Piece

_LEAST = -9999.0
"""OpenAI's value for a token that is out of the question. JSON has no infinity."""


@dataclass(frozen=True)
class TokenLogProb:
    """`text` is empty for a token that is only part of a character; the character comes with the last of its tokens."""

    text: str
    log_prob: float


def tokens_of(piece: Piece) -> list[TokenLogProb]:
    """The tokens of a piece, as far as they can be told apart."""
    if not piece.log_probs:
        return []
    if len(piece.token_texts) == len(piece.log_probs):
        return [
            TokenLogProb(text, _finite(value)) for text, value in zip(piece.token_texts, piece.log_probs, strict=True)
        ]
    return [TokenLogProb(piece.text, _finite(sum(piece.log_probs)))]


def _finite(value: float) -> float:
    return value if value > _LEAST else _LEAST


def chat_log_probs(tokens: Sequence[TokenLogProb]) -> dict[str, object]:
    """In the form of a chat."""
    return {
        "content": [
            {
                "token": token.text,
                "logprob": token.log_prob,
                "bytes": list(token.text.encode(errors="replace")),
                "top_logprobs": [],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def completion_log_probs(tokens: Sequence[TokenLogProb], offset: int) -> dict[str, object]:
    """In the form of a completion. `offset` is where in the text of the answer the first token begins."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "text_offset": offsets,
        "top_logprobs": None,
    }
