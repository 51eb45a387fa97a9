"""The fleet at a terminal: a line for each model, and below it what is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.cli.columns import Cell, Colour, Style, columns, fitted
from deployments.cli.people import short
from tasks.explain.fleet_view import Fleet, ModelRow, State
from tasks.report.fleet_words import (
    HEADS,
    NO_RUNS,
    NOTHING,
    TargetRows,
    by_target,
    cells,
    details,
    troubled_nodes,
    verdict,
)
from tasks.report.shown import cell, shown

_COLOURS: dict[State, Colour] = {"live": "green", "degraded": "yellow", "down": "red", "never": "dim", "retired": "dim"}
_OF_DETAILS: dict[str, Colour] = {"stale": "yellow", "alert": "red"}


def fleet_lines(fleet: Fleet, style: Style, *, long: bool = False) -> Iterator[str]:
    """The models by target, the nodes that are in trouble, and what else there is to know."""
    for rows in by_target(fleet):
        yield from _target_lines(rows, style, long)
        yield ""
    if not fleet.models:
        yield NOTHING
        yield ""
    for trouble in troubled_nodes(fleet):
        yield from (style.paint(line, "red") for line in fitted(cell(trouble), style.width))
    if fleet.runs is None:
        yield NO_RUNS


def _target_lines(of: TargetRows, style: Style, long: bool) -> Iterator[str]:
    yield of.title
    heads, lines = columns(tuple(map(str.upper, HEADS)), [_cells(row) for row in of.models], style)
    yield heads
    for row, line in zip(of.models, lines, strict=True):
        yield from line.split("\n")
        for each in details(row):
            text = each.text if each.run is None else f"{each.text} (run {each.run.id[:8]})"
            whole = " ".join(shown(text).split()) if long else cell(short(text))
            yield from style.paragraph(each.label, whole, _OF_DETAILS.get(each.label, ""))


def _cells(row: ModelRow) -> list[Cell]:
    colours: dict[str, Colour] = {
        "verdict": "red" if verdict(row) == "failing" else "",
        "nodes": "yellow" if row.nodes_ready != row.nodes else "",
        "state": _state_colour(row),
    }
    return [Cell(cell(text), colours.get(head, "")) for head, text in zip(HEADS, cells(row), strict=True)]


def _state_colour(row: ModelRow) -> Colour:
    without_file = row.file == "missing" and row.release is not None
    return "yellow" if without_file and row.serving == "live" else _COLOURS[row.serving]
