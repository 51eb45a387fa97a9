"""Comparisons as a table: of gates before a promotion, and of the watch after it."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.gates import wording
from tasks.report.blocks import Table
from tasks.targets.gate_record import Comparison

_HEAD = ("measure", "candidate", "against", "difference", "may be lost", "samples", "method")


def compared_rows(comparisons: Sequence[Comparison]) -> Table:
    """Each measure of a release beside that of another, with the bounds of the difference."""
    return Table(_HEAD, tuple(map(_row, comparisons)))


def _row(each: Comparison) -> tuple[str, ...]:
    unit = each.unit
    seen = "" if each.detectable is None else f", which show a loss of {wording.loss(each.detectable, unit)}"
    return (
        each.measure,
        wording.value(each.candidate, unit),
        f"{wording.value(each.other, unit)} {wording.AGAINST[each.against]}",
        f"{wording.change(each.difference, unit)} ({wording.between(each)})",
        wording.loss(each.margin, unit),
        f"{each.samples}{seen}",
        each.method,
    )
