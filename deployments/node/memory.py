"""What memory the processes of each release hold, for the node's report: looked at by a thread of its own.

The kernel makes who asks for a process's command line wait while that process takes memory, so the loop never asks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from infra.triton.processes import memory_of_models
from tasks.targets.node_report import REPORT_SECONDS
from tasks.triton.placement import release_names

_log = logging.getLogger("enginehouse.node")


class Memory:
    """Looks at the models in the folder `models` of a Triton, from `start` to `stop`."""

    def __init__(self, models: Path, *, every_s: float = REPORT_SECONDS / 2) -> None:
        self._models = models
        self._every_s = every_s
        self._held: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def of(self, model: str, releases: Iterable[int]) -> dict[int, int]:
        """Bytes by release; without those of which no process is known, as of engines that run in Triton's own."""
        held = self._held
        sums = {each: sum(held.get(name, 0) for name in release_names(model, each).values()) for each in releases}
        return {release: total for release, total in sums.items() if total}

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._held = memory_of_models(self._models)
            except Exception:  # what cannot be looked at ends nothing else
                _log.exception("the memory of the releases cannot be read")
