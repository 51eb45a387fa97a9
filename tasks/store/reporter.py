"""How a long step tells what it does, and what it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.progress import Progress


@dataclass(frozen=True)
class Reporter:
    """Where a step's bytes done and a tool's lines go. Both may be called from any thread."""

    progress: Progress = lambda done, total: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Peak:
    """The most memory that the processes of a step held at once, in bytes, beside this one's own."""

    host_bytes: int = 0
    gpu_bytes: int = 0

    def __or__(self, other: Peak) -> Peak:
        """Of two steps that follow one another."""
        return Peak(max(self.host_bytes, other.host_bytes), max(self.gpu_bytes, other.gpu_bytes))
