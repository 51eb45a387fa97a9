"""What has come of one answer: its tokens and when, never its text."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import get_args

from deployments.gateway.messages import InferResponse
from deployments.gateway.tensors import decode
from tasks.serving.contract import FinishReason

_REASONS = frozenset(get_args(FinishReason))


@dataclass
class Heard:
    """Of the answer to a request that arrived at `begun`, by the monotonic clock like all times here."""

    begun: float
    asked_at: float | None = None
    """When it was first given to a node."""
    first_at: float | None = None
    """When the first of its tokens came."""
    last_at: float = 0.0
    whole_at: float | None = None
    """When it ended as an answer does."""
    first_tokens: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    reasons: list[str] = field(default_factory=list[str])
    """How its rows ended, by those that say it."""

    def note(self, response: InferResponse) -> int:
        """Count what a response has; returns its tokens, of the input too where the release says them."""
        has_text = tokens_in = 0
        tokens_out: int | None = None
        for index, tensor in enumerate(response.outputs):
            match tensor.name:
                case "text_output":
                    # A text is its length in four bytes, then itself.
                    has_text = len(response.raw_output_contents[index]) > 4
                case "num_output_tokens":
                    tokens_out = _sum(response.raw_output_contents[index])
                case "num_input_tokens" if not self.tokens_in:
                    tokens_in = _sum(response.raw_output_contents[index])
                case "finish_reason":
                    said = decode("BYTES", response.raw_output_contents[index])
                    # Of an answer's own words none becomes a label.
                    self.reasons += [reason for reason in said if isinstance(reason, str) and reason in _REASONS]
                    self.ended()
                case _:
                    pass
        tokens_out = int(has_text) if tokens_out is None else tokens_out
        if tokens_out:
            self.last_at = time.monotonic()
            if self.first_at is None:
                self.first_at, self.first_tokens = self.last_at, tokens_out
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        return tokens_in + tokens_out

    def ended(self) -> None:
        """All of it has come. The first time counts."""
        self.whole_at = self.whole_at or time.monotonic()

    @property
    def gap(self) -> float | None:
        """The mean time between two tokens; None of an answer that came at once."""
        later = self.tokens_out - self.first_tokens
        return (self.last_at - self.first_at) / later if self.first_at is not None and later > 0 else None


def _sum(raw: bytes) -> int:
    """The sum of an INT32 tensor."""
    return sum(int.from_bytes(raw[at : at + 4], "little", signed=True) for at in range(0, len(raw), 4))
