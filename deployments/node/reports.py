"""The reports of a node, written by a thread of its own: when something has changed, and otherwise as a heartbeat.

The name of a node belongs to whoever reports by it. Each write is conditional on the node's own last one, so two nodes
of one name find out, and the one that came later is refused.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

from infra.errors import PreconditionFailed, UsageError
from infra.files import replace_file
from tasks.targets.node_report import NODE_LIFETIME_SECONDS, REPORT_SECONDS, NodeReport
from tasks.targets.target import Target

_CHANGES_ALWAYS = {
    "written": True,
    "memory_available_bytes": True,
    "observed": True,
    "machine": {"gpus": {"__all__": {"free_bytes": True}}},
    "models": {"__all__": {"releases": {"__all__": {"memory_bytes": True}}}},
}
"""Fields whose change is no reason to write a report."""
_OTHERS_SECONDS = 2 * REPORT_SECONDS
"""Another node of the name that lives has written again by then."""
_RETRY_SECONDS = 1.0

_log = logging.getLogger("enginehouse.node")


def instance(folder: Path) -> str:
    """What tells this node from another of its name: the same for each agent that works in `folder`."""
    file = folder / "instance"
    try:
        return file.read_text()
    except FileNotFoundError:
        made = uuid.uuid4().hex
    try:
        replace_file(file, made.encode())
    except OSError as error:  # the next agent waits until this one's last report is old
        _log.warning("%s cannot be written: %s", file, error)
    return made


class Reports:
    """`offer` it what there is to report, as often as you like."""

    def __init__(self, target: Target) -> None:
        self._target = replace(target, bucket=target.bucket.impatient(REPORT_SECONDS))
        self._offered: NodeReport | None = None
        self._event = threading.Event()
        self._stopped = False
        self._etag: str | None = None
        self._written: bytes = b""
        self._written_at = -REPORT_SECONDS
        self._other: tuple[str, float] | None = None
        self.error = ""
        """Why the last report could not be written; empty if it was."""
        self.refused: UsageError | None = None
        """The name belonged to another node before this one ever reported."""
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._event.set()

    def offer(self, report: NodeReport) -> None:
        self._offered = report
        self._event.set()

    def _run(self) -> None:
        while not self._stopped:
            self._event.wait()
            self._event.clear()
            if (report := self._offered) is None or self._stopped:
                continue
            state = report.model_dump_json(exclude=_CHANGES_ALWAYS).encode()
            if state == self._written and time.monotonic() - self._written_at < REPORT_SECONDS:
                continue
            try:
                if self._write(report):
                    self._written, self._written_at, self.error = state, time.monotonic(), ""
                    continue
            except Exception as error:
                if str(error) != self.error:
                    _log.warning("the report could not be written: %s", error)
                self.error = str(error)
            time.sleep(_RETRY_SECONDS)

    def _write(self, report: NodeReport) -> bool:
        """Write the report, unless another node may have the name. Raises UsageError once it is known to."""
        if self._etag is None and not self._is_ours(report):
            return False
        try:
            self._etag = self._target.report_over(report, self._etag)
        except PreconditionFailed:
            self._etag = None  # our own write whose answer was lost, or another node's: the next look tells
            return False
        return True

    def _is_ours(self, report: NodeReport) -> bool:
        """Whether nobody else reports by this name; then the ETag to replace is known."""
        found = self._target.node(report.node)
        if found is None:
            return True
        now, (other, etag, age) = time.monotonic(), found
        if other in (report.instance, None) or age > NODE_LIFETIME_SECONDS:
            self._etag, self._other = etag, None
            return True
        if self._other is None:
            self._other = etag, now
        first, since = self._other
        if etag != first:
            taken = UsageError(
                f"another node reports by the name '{report.node}' on target '{report.target}'",
                hint="give each node of a target a name of its own: enginehouse node --name NAME",
                code="node-name-taken",
            )
            if not self._written:
                self.refused = taken
            raise taken
        if now - since > _OTHERS_SECONDS:
            self._etag, self._other = etag, None
            return True
        return False
