"""What a supervised command uses while it runs: memory of the host and of GPUs, over all of its processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from infra.processes import child_supervisor


class Sampler(threading.Thread):
    """Measures all descendants of `supervisor` every `interval_s`, and remembers which they were: pid and start."""

    def __init__(self, supervisor: int, sample_gpu: Callable[[frozenset[int]], int] | None, interval_s: float) -> None:
        super().__init__(name=f"sample-{supervisor}", daemon=True)
        self.over = threading.Event()
        self.seen: frozenset[tuple[int, int]] = frozenset()
        self.peak_host_bytes = 0
        self.peak_gpu_bytes = 0
        self.error: Exception | None = None
        self._interval_s = interval_s
        self._host_due = 0.0
        self._supervisor = supervisor
        self._sample_gpu = sample_gpu

    def run(self) -> None:
        try:
            while not self.over.wait(self._interval_s):
                self._sample()
        except Exception as error:
            self.error = error

    def _sample(self) -> None:
        table = child_supervisor.process_table()
        pids = frozenset(p for p in child_supervisor.descendants([self._supervisor], table) if table[p].alive)
        self.seen |= {(pid, table[pid].started) for pid in pids}
        started = time.monotonic()
        if started >= self._host_due:
            self.peak_host_bytes = max(self.peak_host_bytes, sum(map(_host_bytes, pids)))
            # The system walks all pages for it: 44 ms a GiB, measured. It gets a tenth of one core at most.
            self._host_due = started + 10 * (time.monotonic() - started)
        if self._sample_gpu is not None:
            self.peak_gpu_bytes = max(self.peak_gpu_bytes, self._sample_gpu(pids))


def _host_bytes(pid: int) -> int:
    """The proportional set size of `pid`, or 0 when it has ended or belongs to another user."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0
