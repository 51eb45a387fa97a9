"""Asking others without waiting for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from infra.errors import SourceUnavailable

_T = TypeVar("_T")


def within(seconds: float, what: str, work: Callable[[], _T]) -> _T:
    """What `work` returns or raises. Raises SourceUnavailable `no-answer` if it takes longer than that.

    Clients have bounds for each of their requests, and add them up. What hangs is left to the process's end.
    """
    done: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    # A thread that hangs must not keep the process when all is said.
    thread = threading.Thread(target=run, name=f"asking {what}", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise SourceUnavailable(
            f"{what} did not answer within {seconds:g} s", hint="try again, or --offline", code="no-answer"
        )
    return done[0]
