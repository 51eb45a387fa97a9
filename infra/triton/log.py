"""The log of a Triton that runs: what was written since a moment before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MOST_BYTES = 256 * 1024
"""A failure's own lines come last; engines on several GPUs write megabytes before."""


@dataclass(frozen=True)
class Log:
    path: Path

    def end(self) -> int:
        """Where it ends now, in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def since(self, start: int) -> str:
        """What came after `start`, the last 256 KiB of it."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(start, self.end() - _MOST_BYTES))
            return file.read().decode(errors="replace")
