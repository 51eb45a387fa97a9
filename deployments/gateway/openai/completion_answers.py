"""Answers to a completion: whole, or as a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Literal

from .answers import stream, whole
from .completions import CompletionRequest
from .errors import ApiError
from .generation import Piece
from .log_probs import TokenLogProb, completion_log_probs, tokens_of
from .streams import Chunks, Head, Numbered
from .usage import Usage

_KIND = "text_completion"


async def completion_answer(
    request: CompletionRequest, head: Head, pieces: AsyncGenerator[Numbered, None]
) -> dict[str, object]:
    """The whole answer. Raises ApiError where a generation fails."""
    return await whole(_KIND, head, _choices(request), Usage(request.choices_per_prompt), pieces)


def completion_stream(
    request: CompletionRequest, head: Head, pieces: AsyncGenerator[Numbered, None]
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events. Raises ApiError before the first of them, and tells of an error after it."""
    chunks = Chunks(_KIND, head, include_usage=request.include_usage)
    return stream(chunks, _choices(request), Usage(request.choices_per_prompt), pieces)


def _choices(request: CompletionRequest) -> list[_Choice]:
    return [_Choice(number, log_probs=request.log_probs) for number in range(len(request.generations))]


class _Choice:
    """One choice of an answer, as far as it has come."""

    def __init__(self, number: int, *, log_probs: bool) -> None:
        self._number = number
        self._log_probs = log_probs
        self._text: list[str] = []
        self._tokens: list[TokenLogProb] = []
        self._offset = 0
        self._reason: Literal["stop", "length"] | None = None

    def read(self, piece: Piece) -> None:
        """Takes the next piece."""
        self._text.append(piece.text)
        self._tokens += tokens_of(piece) if self._log_probs else []
        if piece.finish_reason:
            self._reason = "length" if piece.finish_reason == "length" else "stop"

    def chunks(self, piece: Piece) -> Iterator[dict[str, object]]:
        """The chunk that a piece makes. OpenAI's last chunk may have text as well."""
        self.read(piece)
        yield self._body(self._reason)
        self._offset += sum(token.characters for token in self._tokens)
        self._text.clear()
        self._tokens.clear()

    def body(self) -> dict[str, object]:
        """The choice of a whole answer."""
        return self._body(self.require_end())

    def require_end(self) -> Literal["stop", "length"]:
        """Raises ApiError where the pieces ended before the answer did."""
        if self._reason is None:
            raise ApiError("internal", f"choice {self._number} ended without a reason")
        return self._reason

    def _body(self, reason: Literal["stop", "length"] | None) -> dict[str, object]:
        return {
            "index": self._number,
            "text": "".join(self._text),
            "logprobs": completion_log_probs(self._tokens, self._offset) if self._log_probs else None,
            "finish_reason": reason,
        }
