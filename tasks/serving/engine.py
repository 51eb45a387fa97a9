"""What the runner asks of an engine. Each engine is one thin module beside this one."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from .contract import FinishReason, GenerationRequest

MAX_RUNNING = 256
"""Rows that may run or wait in one engine. Further ones are refused at once: their turn would come too late."""


class EngineFailed(RuntimeError):
    """The engine broke, or ended before its answer did; the client is not to blame."""


class EngineUnavailable(EngineFailed):
    """The engine has ended and comes back by itself: the same request may be sent again."""


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, with one log probability (natural logarithm) a token where they are wanted.

    `output_tokens` are those that came since the last piece, but for one that only ends the answer. `input_tokens` are
    those of the prompt. `finish_reason` is set in the last piece alone. `at` is when it came, by the monotonic clock.
    """

    text: str
    log_probs: tuple[float, ...] = ()
    output_tokens: int = 0
    input_tokens: int = 0
    finish_reason: FinishReason | None = None
    at: float = field(default_factory=time.monotonic, compare=False)


class Engine(Protocol):
    """A loaded model that batches whatever it is given. Everything that it is asked, it is asked on one event loop."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        """Pieces in order, of which none splits a character; together they are the answer.

        What has come at once is one piece. A generator that is closed, or whose task is cancelled, frees what the
        request holds, waiting or running. Raises RequestRefused for what this engine cannot honour, and EngineFailed.
        """
        ...

    def cache_usage(self) -> float | None:
        """The part of its cache of keys and values that running requests use; None where it does not tell. From any
        thread."""
        ...

    async def close(self) -> None:
        """Free the model. No generation is running any more."""
        ...
