"""The fleet in words: a line for each model, and below it what is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from deployments.cli.columns import Cell, Colour, Style, columns, fitted
from deployments.cli.people import age, short
from tasks.explain.fleet_view import Fleet, ModelRow, NodeRow, State
from tasks.report.shown import cell, shown

_HEADS = ("MODEL", "LIVE", "KIND", "AGE", "VERDICT", "NODES", "STATE")
_COLOURS: dict[State, Colour] = {"live": "green", "degraded": "yellow", "down": "red", "never": "dim", "retired": "dim"}


def fleet_lines(fleet: Fleet, style: Style, *, long: bool = False) -> Iterator[str]:
    """The models by target, the nodes that are in trouble, and what else there is to know."""
    by_target = sorted(fleet.models, key=lambda row: row.target)
    for target, rows in groupby(by_target, lambda row: row.target):
        yield from _target_lines(target, list(rows), fleet, style, long)
        yield ""
    if not fleet.models:
        yield "no model is shown: none is live or has a file here, or none fits what was asked for"
        yield ""
    yield from (line for node in fleet.nodes for line in _node_lines(node, style))
    if fleet.runs is None:
        yield "runs in progress are not known: Prefect did not answer"


def _target_lines(target: str, rows: list[ModelRow], fleet: Fleet, style: Style, long: bool) -> Iterator[str]:
    nodes = sum(node.target == target for node in fleet.nodes)
    yield f"target {target}, {nodes} node{'s' * (nodes != 1)}" if target else "of no target"
    heads, lines = columns(_HEADS, [_cells(row) for row in rows], style)
    yield heads
    for row, line in zip(rows, lines, strict=True):
        yield from line.split("\n")
        for label, text, colour in _details(row):
            whole = " ".join(shown(text).split()) if long else cell(short(text))
            yield from style.paragraph(label, whole, colour)


def _cells(row: ModelRow) -> list[Cell]:
    ready = f"{row.nodes_ready}/{row.nodes}"
    verdict = row.watch if row.watch in ("watching", "failing") else row.verdict
    return [
        Cell(cell(row.model)),
        Cell("-" if row.release is None else f"@{row.release}"),
        Cell(" ".join(filter(None, (row.kind, row.runtime))) or "-"),
        Cell(age(row.age_s)),
        Cell(verdict or "-", "red" if verdict == "failing" else ""),
        Cell("-" if row.release is None else ready, "" if row.nodes_ready == row.nodes else "yellow"),
        _state(row),
    ]


def _state(row: ModelRow) -> Cell:
    if row.file == "missing" and row.release is not None:
        return Cell(f"{row.serving}, no file", "yellow" if row.serving == "live" else _COLOURS[row.serving])
    return Cell(row.serving, _COLOURS[row.serving])


def _details(row: ModelRow) -> Iterator[tuple[str, str, Colour]]:
    if row.newest is not None:
        reason = f": {row.newest.reason}" if row.newest.reason else ""
        yield "newest", f"release {row.newest.release}, {age(row.newest.age_s)} old, is {row.newest.state}{reason}", ""
    for run in row.runs:
        since = f"for {age(run.seconds)}" if run.seconds else ""
        yield "running", f"{run.flow}, {run.state.lower()} {since}".rstrip() + f" (run {run.id[:8]})", ""
    for reason in row.stale:
        yield "stale", f"its file changed {reason.why}" if reason.what == "file" else reason.why, "yellow"
    for alert in row.alerts:
        yield "alert", alert, "red"


def _node_lines(node: NodeRow, style: Style) -> Iterator[str]:
    text = f"is silent for {age(node.age_s)}" if node.state == "silent" else node.error
    if text:
        lines = fitted(cell(f"node {node.name} of {node.target}: {text}"), style.width)
        yield from (style.paint(line, "red") for line in lines)
