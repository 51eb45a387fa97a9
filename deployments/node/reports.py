"""The reports of a node: one whenever something has changed, and otherwise one as a heartbeat."""

from __future__ import annotations

import time

from tasks.targets.node_report import REPORT_SECONDS, NodeReport
from tasks.targets.target import Target

_CHANGES_ALWAYS = {
    "written": True,
    "memory_available_bytes": True,
    "machine": {"gpus": {"__all__": {"free_bytes": True}}},
}
"""Fields whose change is no reason to write a report."""


class Reports:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._written = b""
        self._written_at = 0.0

    def write(self, report: NodeReport) -> None:
        """Write the report if it is due. Raises StoreError; then the next call tries again."""
        state = report.model_dump_json(exclude=_CHANGES_ALWAYS).encode()
        if state == self._written and time.monotonic() - self._written_at < REPORT_SECONDS:
            return
        self._target.report(report)
        self._written, self._written_at = state, time.monotonic()
