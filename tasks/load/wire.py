"""What a protocol does for a load: it makes a request ready, then sends it and hears its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from tasks.load.outcome import Hearing
from tasks.load.prompts import Prompt

WireName = Literal["openai", "completions", "sse", "grpc"]

Call = Callable[[Hearing], Awaitable[None]]
"""Sends a request and returns when its answer has ended. Raises RequestFailed."""


@dataclass(frozen=True)
class Sampling:
    """What all requests of a load ask for beside their prompts.

    `exact_lengths`: an answer has exactly the tokens that were drawn, where the kind can do that. None stands for the
    model's own.
    """

    exact_lengths: bool = False
    temperature: float | None = None
    seed: int | None = None
    uncounted: bool = False
    """Leave no trace in the figures of a release that can tell: they are of clients."""


class Wire(Protocol):
    """One protocol, to one model at one address."""

    async def open(self) -> None:
        """Learn what the model takes. Raises RequestFailed."""
        ...

    def prepare(self, prompt: Prompt) -> Call:
        """The request, encoded before the moment at which it is to be sent."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
