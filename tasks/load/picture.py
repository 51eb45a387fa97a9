"""The figures of a run as one SVG file that needs no other: latencies by percentile, their histogram, their course."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from tasks.load.axis import Axis
from tasks.load.collected import Collected
from tasks.load.metrics import MetricName
from tasks.load.percentiles import needed
from tasks.load.summary import Summary

_SHOWN: tuple[tuple[MetricName, str], ...] = (
    ("time_to_first_token", "#1f6fb2"),
    ("request_latency", "#b2541f"),
)
_WIDTH, _PANEL, _GAP, _LEFT, _TOP = 760, 210, 64, 74, 56
_RIGHT = 24
_BINS = 60
_MOST_POINTS = 2000
"""Of the course; of more requests each bin has its slowest."""
_NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)

Values = npt.NDArray[np.float64]


def picture(model: str, summary: Summary, collected: Collected) -> str:
    """The whole file."""
    height = _TOP + 3 * (_PANEL + _GAP)
    title = (
        f"{model}: {summary.answered} of {summary.requests} requests answered,"
        f" {summary.request_throughput:.2f} requests/s"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
        ' font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(_LEFT, 22, title, size=15),
        *_legend(),
    ]
    series: _Series = [(colour, collected.column(name)) for name, colour in _SHOWN]
    if len(series[0][1]):
        tops = [_TOP + row * (_PANEL + _GAP) for row in range(3)]
        parts += _by_percentile(tops[0], series)
        parts += _histogram(tops[1], series)
        parts += _course(tops[2], collected.moments_s(), series)
    if not summary.lateness.on_time:
        parts.append(_text(_LEFT, height - 8, "refused: the load itself was late", colour="#b00020"))
    return "\n".join((*parts, "</svg>", ""))


_Series = Sequence[tuple[str, Values]]


def _by_percentile(top: float, series: _Series) -> Iterator[str]:
    """The curve ends at the percentile that the number of requests allows."""
    most_known = max(each for each in _NINES if each == 0 or len(series[0][1]) >= needed(each))
    x = Axis(0, -math.log10(1 - max(most_known, 50) / 100), _LEFT, _WIDTH - _RIGHT)
    y = _latencies(top, series)
    yield from _frame(top, "latency by percentile, ms", [], x, y)
    for which in (each for each in _NINES if each <= most_known):
        place = x.at(-math.log10(1 - which / 100))
        yield _line(place, top, place, top + _PANEL, "#e4e4e4")
        yield _text(place, top + _PANEL + 16, f"p{which:g}", anchor="middle")
    shares = 1 - 10 ** -np.linspace(0, x.high, 240)
    for colour, values in series:
        yield _path(zip(np.linspace(0, x.high, 240), np.quantile(values, shares), strict=True), x, y, colour)


def _histogram(top: float, series: _Series) -> Iterator[str]:
    times = _latencies(top, series)
    x = Axis(times.low, times.high, _LEFT, _WIDTH - _RIGHT, log=True)
    edges = np.geomspace(x.low, x.high, _BINS + 1)
    counted = [(colour, np.histogram(values, edges)[0]) for colour, values in series]
    y = Axis(0, max(int(counts.max()) for _, counts in counted) or 1, top + _PANEL, top)
    yield from _frame(top, "requests by latency in ms", list(x.ticks()), x, y)
    for colour, counts in counted:
        for left, right, count in zip(edges, edges[1:], counts, strict=False):
            if count:
                place, width = x.at(float(left)), x.at(float(right)) - x.at(float(left))
                yield (
                    f'<rect x="{place:.1f}" y="{y.at(int(count)):.1f}" width="{max(width - 0.5, 0.5):.1f}"'
                    f' height="{y.begin - y.at(int(count)):.1f}" fill="{colour}" fill-opacity="0.55"/>'
                )


def _course(top: float, moments: Values, series: _Series) -> Iterator[str]:
    x = Axis(0, max(float(moments.max()), 1e-3), _LEFT, _WIDTH - _RIGHT)
    y = _latencies(top, series)
    yield from _frame(top, "latency in ms, by the second in which the request was to be sent", list(x.ticks()), x, y)
    for colour, values in series:
        for moment, value in _thinned(moments, values):
            yield f'<circle cx="{x.at(moment):.1f}" cy="{y.at(value):.1f}" r="1.6" fill="{colour}" fill-opacity="0.6"/>'


def _thinned(moments: Values, values: Values) -> Iterator[tuple[float, float]]:
    order = np.argsort(moments, kind="stable")
    for places in np.array_split(order, min(_MOST_POINTS, len(order))):
        slowest = places[np.argmax(values[places])]
        yield float(moments[slowest]), float(values[slowest])


def _latencies(top: float, series: _Series) -> Axis:
    low = min(float(values.min()) for _, values in series)
    high = max(float(values.max()) for _, values in series)
    low = max(low, 0.01)
    return Axis(low * 0.9, max(high, low) * 1.1, top + _PANEL, top, log=True)


def _frame(top: float, title: str, ticks: Sequence[float], x: Axis, y: Axis) -> Iterator[str]:
    yield _text(_LEFT, top - 8, title)
    for value in y.ticks():
        yield _line(_LEFT, y.at(value), _WIDTH - _RIGHT, y.at(value), "#e4e4e4")
        yield _text(_LEFT - 6, y.at(value) + 4, f"{value:,.10g}", anchor="end")
    for value in ticks:
        yield _text(x.at(value), top + _PANEL + 16, f"{value:,.10g}", anchor="middle")
    yield (
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_PANEL}" fill="none" stroke="#999"/>'
    )


def _legend() -> Iterator[str]:
    for number, (name, colour) in enumerate(_SHOWN):
        left = _WIDTH - _RIGHT - 300 + number * 160
        yield f'<rect x="{left}" y="{_TOP - 18}" width="10" height="10" fill="{colour}"/>'
        yield _text(left + 15, _TOP - 9, name)


def _path(points: Iterator[tuple[float, float]], x: Axis, y: Axis, colour: str) -> str:
    drawn = " ".join(f"{x.at(float(left)):.1f},{y.at(float(up)):.1f}" for left, up in points)
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )
