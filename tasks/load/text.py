"""The figures of a run in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from tasks.load.metrics import FORMULAS
from tasks.load.percentiles import percentile_name
from tasks.load.summary import Figures, Summary

_WIDTH = 80
_NAME = 23
_SHOWN = (50.0, 90.0, 95.0, 99.0)
"""Percentiles of the table; JSON has all."""
_TOO_FEW = "too few"


def lines(summary: Summary) -> Iterator[str]:
    """Everything that was measured, and the formulas."""
    columns = ("mean", *map(percentile_name, _SHOWN), "most")
    yield " " * (_NAME + 7) + "".join(f"{name:>8}" for name in columns)
    for figures in summary.figures:
        yield _row(figures)
    if too_few := _too_few(summary):
        yield f"{_TOO_FEW}: {too_few}"
    yield ""
    for line in _counts(summary):
        yield from wrap(line, _WIDTH, subsequent_indent="  ")
    yield ""
    for name, formula in FORMULAS:
        yield from wrap(f"{name} = {formula}", _WIDTH, subsequent_indent="  ")


def _row(figures: Figures) -> str:
    told = {each.which: each.value for each in figures.percentiles}
    values = (figures.mean, *(told[which] for which in _SHOWN), figures.most)
    cells = "".join(f"{_TOO_FEW if value is None else _number(value):>8}" for value in values)
    return f"{figures.metric.name:{_NAME}}{figures.metric.unit:>7}{cells}"


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _too_few(summary: Summary) -> str:
    missing = {
        each.which: each.needed
        for figures in summary.figures
        for each in figures.percentiles
        if each.value is None and each.which in _SHOWN
    }
    return ", ".join(f"{percentile_name(which)} takes {count} requests" for which, count in sorted(missing.items()))


def _counts(summary: Summary) -> Iterator[str]:
    failed = summary.requests - summary.answered
    yield (
        f"requests: {summary.answered} answered, {failed} failed in {summary.benchmark_duration_s:.1f} s;"
        f" {summary.warm_up} to warm up"
    )
    if summary.given_up:
        yield f"given up: {summary.given_up}, which ran when the load was ended"
    for each in summary.failures:
        yield f"failed: {each.count} {each.kind}: {each.first_message}"
    yield f"request_throughput: {summary.request_throughput:.2f} requests/s"
    if summary.output_token_throughput is None:
        yield "output_token_throughput: the server told no tokens"
    else:
        yield f"output_token_throughput: {summary.output_token_throughput:,.1f} tokens/s"
    if summary.goodput is not None:
        limits = ", ".join(f"{name} <= {limit:g} ms" for name, limit in summary.limits.items())
        good = f"goodput: {summary.goodput:.2f} requests/s, {summary.good_requests} of {summary.requests} within"
        yield f"{good} {limits}"
    if summary.queued_most_ms > 1:
        yield f"queued: up to {summary.queued_most_ms:,.0f} ms, because as many ran as may at once"
    late = summary.lateness
    yield (
        f"sender_lateness: p99 {late.sender_p99:.2f} ms, most {late.sender_most:.1f} ms; its loop p99"
        f" {late.loop_p99:.2f} ms"
    )
    if not late.on_time:
        yield f"REFUSED: the load was late by more than {late.limit:g} ms: these figures are its own"
