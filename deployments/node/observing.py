"""What a node counts of its clients' requests, by release, for its report: read from the figures of its Triton.

Each process of a release has counters of its own there, which begin at zero when it is loaded again. Here they add up,
so that what the report says only grows.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from infra.errors import TritonError
from infra.triton.client import TritonClient
from tasks.serving.figures import FINISHED, FIRST, GAP
from tasks.targets.node_report import REPORT_SECONDS
from tasks.targets.observed import Counts, NodeObserved, Observed

_POLL_SECONDS = REPORT_SECONDS / 2
_PATIENCE_SECONDS = 5.0
_HISTOGRAMS = {f"{FIRST.name}_bucket": "first", f"{GAP.name}_bucket": "gap"}
_READ = (FINISHED.name, *_HISTOGRAMS)

Process: TypeAlias = tuple[str, int, str]
"""A model, its release, and which of the release's processes."""

_log = logging.getLogger("enginehouse.node")


class Observing:
    """Reads Triton's figures by a thread of its own, from `start` to `stop`."""

    def __init__(self, metrics: TritonClient) -> None:
        self._metrics = metrics.within(_PATIENCE_SECONDS)
        self._epoch = uuid.uuid4().hex[:16]
        self._last: dict[Process, Observed] | None = None
        self._totals: dict[tuple[str, int], Observed] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def observed(self, releases: Mapping[str, frozenset[int]]) -> NodeObserved:
        """What was counted of these releases of each model since this node was started."""
        models: dict[str, dict[int, Observed]] = defaultdict(dict)
        for (model, release), total in sorted(self._totals.items()):
            if release in releases.get(model, ()):
                models[model][release] = total
        return NodeObserved(epoch=self._epoch, models=dict(models))

    def begin_again(self) -> None:
        """Triton was started again: its counters began at zero, maybe where nobody saw them fall."""
        self._last = {}

    def take(self, figures: str) -> None:
        """Add what has come since the last time. What an agent finds at its start was counted by the one before it."""
        now = by_process(figures)
        if self._last is not None:
            totals = dict(self._totals)
            for process, counted in now.items():
                if gained := counted.since(self._last.get(process, Observed())):
                    model, release, _ = process
                    totals[model, release] = totals.get((model, release), Observed()) + gained
            self._totals = totals  # another thread reads it
        self._last = now

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                self.take(self._metrics.metrics())
            except TritonError:
                continue  # it does not run, which others see to
            except Exception:  # what cannot be counted ends nothing else
                _log.exception("the figures of Triton cannot be read")


def by_process(figures: str) -> dict[Process, Observed]:
    """The counters in Prometheus's text form, by process, without those that are zero."""
    ended, first, gap = (defaultdict[Process, Counts](dict) for _ in range(3))
    buckets = {"first": first, "gap": gap}
    lines = "\n".join(line for line in figures.splitlines() if line.startswith(_READ))
    reached: dict[tuple[Process, str], float] = {}
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            labels = sample.labels
            if not (number := labels.get("release", "")).isdigit():
                continue
            process = labels.get("model", ""), int(number), labels.get("replica", "")
            if (histogram := _HISTOGRAMS.get(sample.name)) is None:
                if count := int(sample.value):
                    ended[process][labels.get("finished_reason", "")] = count
                continue
            # Each bucket counts those below it too, and they come in order.
            below = reached.get((process, histogram), 0.0)
            reached[process, histogram] = sample.value
            if count := int(sample.value - below):
                buckets[histogram][process][labels["le"]] = count
    return {
        process: Observed(ended=ended.get(process, {}), first=first.get(process, {}), gap=gap.get(process, {}))
        for process in {*ended, *first, *gap}
    }
