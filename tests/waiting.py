"""Waiting for what another process or thread is about to do."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

_SHARE = 0.2
"""Of the time, at most what is spent asking: who is waited for needs the core, and so does the store that is asked."""


PATIENCE = 3
"""How much slower a machine may be than the one that the seconds of the tests were chosen on."""


def wait(condition: Callable[[], bool], what: str, seconds: float = 30, *, every_s: float = 0.05) -> float:
    """Return once `condition` holds, and how long that took. An AssertionError names what is missing after `seconds`,
    of which a slow machine takes several times as many.

    It is asked again after `every_s` seconds, and later if the answer takes long.
    """
    started = asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - started < seconds * PATIENCE, f"no {what} within {seconds * PATIENCE} s"
        time.sleep(max(every_s, (now - asked) * (1 - _SHARE) / _SHARE))
        asked = time.monotonic()
    return time.monotonic() - started


def wait_for_server(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    """Return once the server that `process` is answers at `url` with 200. One that ends before is told by its log."""

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    wait(answers, f"answer of {url}", seconds)
