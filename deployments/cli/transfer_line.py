"""The line on stderr that shows how far a long transfer is."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.progress import Progress


@contextmanager
def transfer_line(label: str) -> Generator[Progress]:
    """A line on stderr that counts bytes, if a person watches."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Line

    columns = TextColumn(label), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    # Rich would otherwise write to stderr what is printed meanwhile, also what a pipe waits for.
    terminal = sys.stdout.isatty()
    with Line(*columns, console=Console(stderr=True), transient=True, redirect_stdout=terminal) as line:
        task = line.add_task(label, total=None)
        yield lambda done, total: line.update(task, completed=done, total=total)
