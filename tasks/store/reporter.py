"""How a long step reports what it is doing, and how much memory it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.progress import Progress


@dataclass(frozen=True)
class Reporter:
    """Where a step reports its progress in bytes, and a tool's lines. Both may be called from any thread."""

    progress: Progress = lambda done, total: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Peak:
    """The most memory that the child processes of a step held at once, in bytes. This process is not counted."""

    host_bytes: int = 0
    gpu_bytes: int = 0

    def __or__(self, other: Peak) -> Peak:
        """The peak of two steps that run one after the other."""
        return Peak(max(self.host_bytes, other.host_bytes), max(self.gpu_bytes, other.gpu_bytes))
