"""The figures of a model among Triton's own at `/metrics`, written from a thread of their own.

Each call of Triton's takes 17 µs of two processes, so nothing is written while a token waits: four times a second,
what has changed.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from .figures import (
    ANSWERED,
    CACHE,
    ENDINGS,
    FAILURE,
    FINISHED,
    GENERATION_TOTAL,
    METRICS,
    MOST,
    PROMPT_TOTAL,
    RUNNING,
    SUCCESS,
    WAITING,
    Figures,
    Metric,
)

INTERVAL_S = 0.25

_RELEASE = re.compile(r"(?P<model>.+?)--r(?P<release>\d+)--.+")


class Metrics:
    """Writes what `figures` has, and the engine's `cache_usage`, until it is closed.

    `triton` is the module `triton_python_backend_utils`, `args` are those of the model's `initialize`.
    A Triton that has no histograms yet gets the others, and one without metrics none; its log says so.
    """

    def __init__(
        self, triton: Any, args: Mapping[str, str], figures: Figures, cache_usage: Callable[[], float | None]
    ) -> None:
        self._figures = figures
        self._cache_usage = cache_usage
        self._written: dict[tuple[Metric, str], float] = {}
        self._families: list[Any] = []
        self._metrics: dict[tuple[Metric, str], Any] = {}
        self._place: socket.socket | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        try:
            self._place, labels = take_place(args)
            histograms = hasattr(triton.MetricFamily, "HISTOGRAM")
            for metric in METRICS:
                if (histograms or not metric.buckets) and (metric is not CACHE or cache_usage() is not None):
                    self._add(triton.MetricFamily, metric, labels)
        except Exception as error:
            _say(f"this Triton takes no figures of requests: {error}")
            self._clear()
            return
        if not histograms:
            _say("this Triton has no histograms, so there are no times of requests")
        self._thread.start()

    def close(self) -> None:
        """Write the last figures, then take them from Triton: those of a release that is gone do not stay."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self._clear()

    def _add(self, family_type: Any, metric: Metric, labels: Mapping[str, str]) -> None:
        kind = "HISTOGRAM" if metric.buckets else "COUNTER" if metric.is_counter else "GAUGE"
        family = family_type(name=metric.name, description=metric.help, kind=getattr(family_type, kind))
        self._families.append(family)
        for ending in ENDINGS if metric.by_ending else ("",):
            own = {**labels, "finished_reason": ending} if ending else dict(labels)
            buckets = {"buckets": list(metric.buckets)} if metric.buckets else {}
            self._metrics[metric, ending] = family.Metric(labels=own, **buckets)

    def _clear(self) -> None:
        # Triton drops a figure once nothing here refers to it or its family.
        self._metrics.clear()
        self._families.clear()
        if self._place is not None:
            self._place.close()

    def _run(self) -> None:
        try:
            while not self._closed.wait(INTERVAL_S):
                self._write()
            self._write()
        except Exception as error:  # requests are answered whether they are counted or not
            _say(f"figures of requests end here: {error}")

    def _write(self) -> None:
        figures = self._figures
        while figures.observed:
            metric, value = figures.observed.popleft()
            if (histogram := self._metrics.get((metric, ""))) is not None:
                histogram.observe(value)
        endings = Counter[str]()
        while figures.ended:
            endings[figures.ended.popleft()] += 1
        for ending, number in endings.items():
            self._metrics[FINISHED, ending].increment(number)
            self._metrics[SUCCESS if ending in ANSWERED else FAILURE, ""].increment(number)
        self._grown(PROMPT_TOTAL, figures.prompt_tokens)
        self._grown(GENERATION_TOTAL, figures.generated_tokens)
        self._set(RUNNING, len(figures.running))
        self._set(WAITING, len(figures.waiting))
        self._set(MOST, figures.slots)
        if (usage := self._cache_usage()) is not None:
            self._set(CACHE, usage)

    def _grown(self, metric: Metric, total: float) -> None:
        if more := total - self._written.get((metric, ""), 0.0):
            self._metrics[metric, ""].increment(more)
            self._written[metric, ""] = total

    def _set(self, metric: Metric, value: float) -> None:
        if self._written.get((metric, "")) != value:
            self._metrics[metric, ""].set(value)
            self._written[metric, ""] = value


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def take_place(args: Mapping[str, str]) -> tuple[socket.socket, dict[str, str]]:
    """Labels that no other living process has, and what holds them; `args` are those of Triton's `initialize`.

    If two processes shared a figure, the first to end would take it from the other, and Triton 2.51 would write into
    memory that it has freed, and die (`MetricFamily::Remove` of its `core/src/metric_family.cc`): so instances have
    figures of their own, and a model that is loaded again while the one of before still ends. One whose process has
    died goes on counting where that stopped: the kernel frees a socket's abstract name with its process.
    """
    instance = args["model_instance_name"]
    replica = instance.removeprefix(f"{args['model_name']}_")
    for number in count():
        name = hashlib.sha256(f"{args['model_repository']} {instance} {number}".encode()).hexdigest()
        place = socket.socket(socket.AF_UNIX)
        try:
            place.bind(f"\0enginehouse-{name[:32]}")
        except OSError as error:
            place.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return place, {**labels_of(args["model_name"]), "replica": f"{replica}-{number}" if number else replica}
    raise AssertionError("numbers have no end")


def labels_of(name: str) -> dict[str, str]:
    """The labels of an `llm` by its name on the server."""
    found = _RELEASE.fullmatch(name)
    return {
        "model": found["model"] if found else name,
        "release": found["release"] if found else "",
        "adapter": "",
    }
