"""What the runner asks of an engine. Each engine is one thin module beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from .contract import GenerationRequest

MAX_RUNNING = 256
"""Rows that may run or wait in one engine. Further ones are refused at once: their turn would come too late."""


class EngineFailed(RuntimeError):
    """The engine broke, or ended before its answer did; the client is not to blame."""


class EngineUnavailable(EngineFailed):
    """The engine has ended and comes back by itself: the same request may be sent again."""


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, with one log probability (natural logarithm) a token where they are wanted."""

    text: str
    log_probs: tuple[float, ...] = ()


class Generation(Protocol):
    """One running request."""

    def __iter__(self) -> Iterator[Piece]:
        """Pieces in order, of which none splits a character; together they are the answer.

        Ends early and quietly when cancelled. Raises RequestRefused or EngineFailed.
        """
        ...

    def cancel(self) -> None:
        """Stop, waiting or running, and free what the request holds. From any thread, at any time, repeatedly."""
        ...


class Engine(Protocol):
    """A loaded model that batches whatever it is given."""

    def start(self, request: GenerationRequest) -> Generation:
        """Hand a request over, at once. Raises RequestRefused for what this engine cannot honour."""
        ...

    def close(self) -> None:
        """Free the model. No generation is running any more."""
        ...
