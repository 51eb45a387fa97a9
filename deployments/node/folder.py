"""A node's folder belongs to one agent at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import UsageError


@contextmanager
def only_agent(folder: Path) -> Generator[None]:
    """Hold the folder during the block; a killed agent lets go of it. Raises UsageError `node-folder-taken`."""
    with (folder / "agent.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another agent works in {folder}",
                hint="one is enough for a Triton; another node on this machine needs an ENGINEHOUSE_HOME of its own",
                code="node-folder-taken",
            ) from None
        yield
