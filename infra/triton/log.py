"""The log of a running Triton, and what was written to it since a position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MOST_BYTES = 256 * 1024
"""The lines of a failure come last; engines on several GPUs write megabytes before them."""


@dataclass(frozen=True)
class Log:
    path: Path

    def end(self) -> int:
        """The size of the log now, in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def since(self, start: int) -> str:
        """What was written after byte `start`, at most the last 256 KiB."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(start, self.end() - _MOST_BYTES))
            return file.read().decode(errors="replace")
