"""What a running step tells: its lines and its bytes, to the log of its task and to whoever watches the step."""

from __future__ import annotations

import time
from collections.abc import Callable

from prefect import get_run_logger

from flows.report import running_step
from infra.progress import Pace

_LOG_SECONDS = 10.0
"""How often a transfer tells the log how far it is, at least: who follows the log of another machine wants to know."""


def telling() -> Callable[[str], None]:
    """Takes a line of this task, from any thread, for its log and for whoever watches the step."""
    log, step = get_run_logger(), running_step()

    def say(line: str) -> None:
        log.info("%s", line)
        step.said = line

    return say


class TellingBytes:
    """Tells whoever watches the running step of each look at its bytes, and the log of some."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._log, self._step = get_run_logger(), running_step()
        self._pace = Pace()
        self._tenth, self._logged = -1, 0.0

    def look(self, done: int, total: int) -> None:
        """Take bytes done and in all, the latter above 0."""
        self._step.said = self._pace.look(done, total)
        tenth, now = 10 * done // total, time.monotonic()
        if tenth != self._tenth or now - self._logged > _LOG_SECONDS:
            self._tenth, self._logged = tenth, now
            self._log.info("%s: %s", self._label, self._step.said)
