"""The figures of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.load.buckets import Buckets
from tasks.load.collected import Collected, Failures
from tasks.load.metrics import FORMULAS, METRICS, Metric, MetricName
from tasks.load.percentiles import PERCENTILES, needed, percentile_name, percentile_of


@dataclass(frozen=True)
class Percentile:
    """`value` is None where there are too few requests: `needed` would be enough."""

    which: float
    value: float | None
    needed: int


@dataclass(frozen=True)
class Figures:
    """One metric over all requests that have it."""

    metric: Metric
    count: int
    mean: float
    least: float
    most: float
    percentiles: tuple[Percentile, ...]


@dataclass(frozen=True)
class Lateness:
    """How late the load itself was, in milliseconds, at the 99th percentile and at most.

    `sender_*` is of the moments of requests, `loop_*` of its event loop, which also reads answers.
    """

    sender_p99: float
    sender_most: float
    loop_p99: float
    loop_most: float
    limit: float

    @property
    def on_time(self) -> bool:
        return max(self.sender_p99, self.loop_p99) <= self.limit


@dataclass(frozen=True)
class Summary:
    """`requests` were measured, `answered` of them answered; throughputs are a second.

    None where the server told no tokens, and of goodput where no limit was asked for. `queued_most_ms` is the longest
    that a request waited because as many ran as may at once.
    """

    requests: int
    answered: int
    warm_up: int
    given_up: int
    failures: tuple[Failures, ...]
    benchmark_duration_s: float
    figures: tuple[Figures, ...]
    request_throughput: float
    output_token_throughput: float | None
    good_requests: int | None
    goodput: float | None
    limits: Mapping[MetricName, float]
    queued_most_ms: float
    lateness: Lateness

    def document(self) -> dict[str, object]:
        """For JSON, under AIPerf's names. Percentiles of too few requests are null."""
        return {
            "request_count": self.answered,
            "error_request_count": self.requests - self.answered,
            "warm_up_request_count": self.warm_up,
            "given_up_request_count": self.given_up,
            "errors": [
                {"kind": each.kind, "count": each.count, "first_message": each.first_message} for each in self.failures
            ],
            "benchmark_duration": self.benchmark_duration_s,
            "request_throughput": self.request_throughput,
            "output_token_throughput": self.output_token_throughput,
            "good_request_count": self.good_requests,
            "goodput": self.goodput,
            "goodput_limits": dict(self.limits),
            "metrics": {each.metric.name: _document(each) for each in self.figures},
            "queued_most_ms": self.queued_most_ms,
            "sender_lateness": {
                "sender_p99_ms": self.lateness.sender_p99,
                "sender_most_ms": self.lateness.sender_most,
                "loop_p99_ms": self.lateness.loop_p99,
                "loop_most_ms": self.lateness.loop_most,
                "limit_ms": self.lateness.limit,
                "on_time": self.lateness.on_time,
            },
            "formulas": dict(FORMULAS),
        }


def summary(
    collected: Collected, limits: Mapping[MetricName, float], *, given_up: int = 0, most_lateness_ms: float
) -> Summary:
    """The figures so far; without a request that was answered it has none of their times."""
    seconds = collected.duration_s
    tokens = collected.output_tokens() if collected.answered else None
    good = collected.good(dict(limits)) if limits else None
    late, pulse = collected.lateness, collected.pulse
    return Summary(
        requests=collected.measured,
        answered=collected.answered,
        warm_up=collected.warmed_up,
        given_up=given_up,
        failures=collected.failures,
        benchmark_duration_s=seconds,
        figures=tuple(found for metric in METRICS if (found := _figures(collected, metric)) is not None),
        request_throughput=collected.answered / seconds if seconds else 0.0,
        output_token_throughput=tokens / seconds if tokens is not None and seconds else None,
        good_requests=good,
        goodput=None if good is None else good / seconds if seconds else 0.0,
        limits=dict(limits),
        queued_most_ms=collected.queued.most * 1000,
        lateness=Lateness(_p99_ms(late), late.most * 1000, _p99_ms(pulse), pulse.most * 1000, most_lateness_ms),
    )


def _p99_ms(times: Buckets) -> float:
    return times.percentile(99) * 1000 if times.count else 0.0


def _figures(collected: Collected, metric: Metric) -> Figures | None:
    if metric.name == "inter_chunk_latency":
        return _figures_of_gaps(collected, metric)
    values = collected.column(metric.name)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    percentiles = tuple(
        _told(which, len(values), percentile_of(values, which)) for which in PERCENTILES
    )  # as many as have a value
    return Figures(metric, len(values), float(values.mean()), float(values.min()), float(values.max()), percentiles)


def _figures_of_gaps(collected: Collected, metric: Metric) -> Figures | None:
    """Gaps of one answer hang together, so the number of answers decides which percentiles are told."""
    gaps = collected.gaps
    if not gaps.count:
        return None
    percentiles = tuple(_told(which, collected.answered, gaps.percentile(which) * 1000) for which in PERCENTILES)
    return Figures(metric, gaps.count, gaps.mean * 1000, gaps.least * 1000, gaps.most * 1000, percentiles)


def _told(which: float, count: int, value: float) -> Percentile:
    enough = needed(which)
    return Percentile(which, value if count >= enough and math.isfinite(value) else None, enough)


def _document(figures: Figures) -> dict[str, object]:
    document: dict[str, object] = {
        "unit": figures.metric.unit,
        "count": figures.count,
        "avg": figures.mean,
        "min": figures.least,
        "max": figures.most,
    }
    return document | {percentile_name(each.which): each.value for each in figures.percentiles}
