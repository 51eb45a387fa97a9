"""Pictures of a report: an interval beside its margin, and how times spread. Each is one SVG element of the page.

Places across are shares of the width, so that lines and letters keep their size on a narrow screen. Colours are the
page's own, by class, so that they follow its light or dark look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate, pairwise

from tasks.gates import wording
from tasks.load.axis import Axis
from tasks.report.shown import cell
from tasks.targets.gate_record import Comparison, Histogram

_ROW, _PLOT = 44, 120
_BESIDE = 3.0
"""Percent of the width left of the lowest value and right of the highest."""
_SIDES = ("candidate", "live")


def interval(each: Comparison) -> str:
    """The difference with its bounds, the margin and the line of no difference. What is better lies to the right."""
    known = [value for value in (each.lower, each.upper) if value is not None]
    places = [each.difference, -each.margin, 0.0, *known]
    low, high = min(places), max(places)
    x = Axis(low, high if high > low else low + 1, _BESIDE, 100 - _BESIDE)
    left = x.begin if each.lower is None else x.at(each.lower)
    right = x.end if each.upper is None else x.at(each.upper)
    middle = _ROW / 2 - 6
    told = wording.between(each)
    parts = [
        f'<svg class="interval" width="100%" height="{_ROW}" role="img">',
        f"<title>{escape(cell(f'difference {told}, margin {wording.loss(each.margin, each.unit)}'))}</title>",
        f'<rect class="lost" x="0" y="0" width="{x.at(-each.margin):.2f}%" height="{_ROW - 14}"/>',
        _line(x.at(0), 0, x.at(0), _ROW - 14, "zero"),
        _line(left, middle, right, middle, f"bar {_standing(each)}"),
        *(_line(end, middle - 5, end, middle + 5, f"bar {_standing(each)}") for end in (left, right)),
        f'<circle class="{_standing(each)}" cx="{x.at(each.difference):.2f}%" cy="{middle:.1f}" r="4"/>',
    ]
    if each.margin:
        parts.append(_line(x.at(-each.margin), 0, x.at(-each.margin), _ROW - 14, "margin"))
        parts.append(_text(x.at(-each.margin), _ROW - 3, f"margin {wording.loss(each.margin, each.unit)}"))
    if not each.margin or abs(x.at(0) - x.at(-each.margin)) > 30:
        parts.append(_text(x.at(0), _ROW - 3, "no difference"))
    return "".join((*parts, "</svg>"))


def histogram(each: Histogram) -> str:
    """Requests by time, candidate and live in the same bins."""
    x = Axis(each.edges[0], each.edges[-1], _BESIDE, 100 - _BESIDE, log=True)
    most = max((*each.candidate, *each.live), default=0) or 1
    parts = [_begin(f"{each.measure}: requests by time in {each.unit}")]
    for side, counts in _sides(each):
        for left, right, count in zip(each.edges, each.edges[1:], counts, strict=False):
            if count:
                place, tall = x.at(left), count / most * (_PLOT - 8)
                parts.append(
                    f'<rect class="{side}" x="{place:.2f}%" y="{_PLOT - tall:.1f}"'
                    f' width="{x.at(right) - place:.2f}%" height="{tall:.1f}"/>'
                )
    return "".join((*parts, *_floor(x), "</svg>"))


def by_share(each: Histogram) -> str:
    """The share of requests that were answered within a time: where live is above, the candidate is slower."""
    x = Axis(each.edges[0], each.edges[-1], _BESIDE, 100 - _BESIDE, log=True)
    parts = [_begin(f"{each.measure}: share of requests within a time in {each.unit}")]
    for share in (0.5, 0.9):
        parts.append(_line(0, _height(share), 100, _height(share), "grid"))
        parts.append(_text(100, _height(share) - 2, f"p{100 * share:g}", "end"))
    for side, counts in _sides(each):
        total = sum(counts) or 1
        reached = [0.0, *(count / total for count in accumulate(counts))]
        points = list(zip(each.edges, reached, strict=False))
        parts += [
            _line(x.at(here), _height(low), x.at(there), _height(high), f"curve {side}")
            for (here, low), (there, high) in pairwise(points)
        ]
    return "".join((*parts, *_floor(x), "</svg>"))


def _sides(each: Histogram) -> Iterator[tuple[str, Sequence[int]]]:
    # The candidate is drawn last, above.
    yield from ((side, counts) for side, counts in ((_SIDES[1], each.live), (_SIDES[0], each.candidate)) if counts)


def _height(share: float) -> float:
    return _PLOT - share * (_PLOT - 8)


def _standing(each: Comparison) -> str:
    """Where the interval lies: all of it better than the margin, all of it worse, or neither."""
    if each.lower is not None and each.lower > -each.margin:
        return "passed"
    return "refused" if each.upper is not None and each.upper < -each.margin else "undecided"


def _begin(title: str) -> str:
    return f'<svg class="plot" width="100%" height="{_PLOT + 18}" role="img"><title>{escape(cell(title))}</title>'


def _floor(x: Axis) -> Iterator[str]:
    yield _line(0, _PLOT, 100, _PLOT, "axis")
    last = -10.0
    for value in x.ticks():
        if x.at(value) - last >= 12:  # percent: a number of seven digits fits on a telephone
            last = x.at(value)
            yield _text(last, _PLOT + 14, f"{value:,.10g}")


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "") -> str:
    # At the edges of the picture a centred text would be cut.
    anchor = anchor or ("start" if x < 12 else "end" if x > 88 else "middle")
    return f'<text x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}">{escape(cell(text))}</text>'
