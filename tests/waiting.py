"""Waiting for what another process or thread is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Return once `condition` holds. An AssertionError after `seconds` names `what` was missing."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"no {what} within {seconds} s"
        time.sleep(0.05)
