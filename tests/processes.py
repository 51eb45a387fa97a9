"""The processes of this machine, of which any may end while it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psutil


def processes_that(are_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Those that are wanted. One that ends meanwhile is not, nor one that may not be looked at."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if are_wanted(process):
                found.append(process)
    return found


def processes_with(word: str) -> list[psutil.Process]:
    """Those with `word` in their command line."""
    return processes_that(lambda process: word in " ".join(process.cmdline()))
