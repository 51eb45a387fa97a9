"""The command `plan`: of one model, or of the whole catalogue as a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import JsonValue

from deployments.cli.columns import Cell, Style, columns, fitted
from deployments.cli.command import error_document, overrides, print_json, say
from deployments.cli.plan import Asked, Preview, look
from deployments.cli.plan_document import document
from deployments.cli.plan_text import lines
from infra.errors import EnginehouseError, SpecError, UsageError
from infra.settings import Settings
from tasks.explain.outlook import refusals
from tasks.models.catalogue import catalogue_entry, load_catalogue
from tasks.models.spec import Model
from tasks.report.shown import cell

_AT_ONCE = 8
"""Models that are looked at side by side: each asks its source and the store."""
_HEADS = ("MODEL", "KIND", "ON", "MEMORY", "LIVE", "TO MAKE")


def plan_model(options: argparse.Namespace, settings: Settings) -> int:
    """Print the plan of one model. Raises UsageError for what a rebuild would refuse before it makes anything."""
    entry = catalogue_entry(settings.catalogue, options.model)
    shown = look(entry, _asked(options), settings)
    for line in shown.unknown:
        say(line)
    if options.target and shown.outlook is not None:
        for refusal in refusals(shown.outlook):
            raise refusal
    if options.json:
        print_json(document(shown, dict(settings.gpu_hour_prices)))
        return 0
    for line in lines(shown, dict(settings.gpu_hour_prices), Style.of_stdout().width):
        print(line)
    return 0


def _asked(options: argparse.Namespace) -> Asked:
    return Asked(overrides(options), options.runtime, tuple(options.target), options.offline)


@dataclass(frozen=True)
class _Row:
    """A model of the catalogue: what a rebuild would do, or why there would be none."""

    name: str
    shown: Preview | None = None
    error: EnginehouseError | None = None

    def document(self, prices: Mapping[str, float]) -> dict[str, JsonValue]:
        if self.shown is not None:
            return document(self.shown, prices)
        assert self.error is not None
        return {"model": self.name, "error": dict(error_document(self.error))}


def plan_fleet(options: argparse.Namespace, settings: Settings) -> int:
    """Print a line for each model of the catalogue. A file with mistakes, or a refusal, costs its own line."""
    if options.recipe or options.runtime or options.target:
        raise UsageError(
            "--recipe, --runtime and --target are about one model", hint="name it: enginehouse plan NAME --recipe …"
        )
    catalogue = load_catalogue(settings.catalogue)
    asked = _asked(options)

    def row(model: Model) -> _Row:
        try:
            return _Row(model.name, look(model, asked, settings))
        except EnginehouseError as error:
            return _Row(model.name, error=error)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = list(pool.map(row, catalogue.models.values()))
    rows += [_Row(name, error=_broken(found, settings)) for name, found in catalogue.broken.items()]
    rows.sort(key=lambda each: each.name)
    if options.json:
        print_json({"models": [each.document(dict(settings.gpu_hour_prices)) for each in rows]})
        return 0
    for line in _table(rows, Style.of_stdout()):
        print(line)
    return 0


def _broken(problems: tuple[str, ...], settings: Settings) -> SpecError:
    """The mistakes of a file, without the path of the catalogue: that is longer than a line."""
    return SpecError("; ".join(each.removeprefix(f"{settings.catalogue}/") for each in problems))


def _table(rows: list[_Row], style: Style) -> Iterator[str]:
    heads, table = columns(_HEADS, [_cells(each) for each in rows], style)
    yield heads
    for each, line in zip(rows, table, strict=True):
        yield from line.split("\n")
        for what in _below(each):
            yield from fitted(f"    {cell(what)}", style.width)
    if not rows:
        yield "the catalogue has no model"


def _cells(row: _Row) -> list[Cell]:
    shown = row.shown
    if shown is None:
        return [Cell(cell(row.name)), *[Cell("-")] * 4, Cell("refused", "red")]
    made = _to_make(shown)
    return [
        Cell(cell(row.name)),
        Cell(shown.model.kind),
        Cell(_machine(shown)),
        Cell(_memory(shown)),
        Cell(_live(shown)),
        Cell(made, "yellow" if made == "?" else ""),
    ]


def _machine(shown: Preview) -> str:
    architecture = shown.kind.pool().removeprefix("build-")
    gpus = len(shown.kind.gpus())
    return f"{gpus} x {architecture}" if gpus else architecture


def _memory(shown: Preview) -> str:
    built = None if shown.outlook is None else shown.outlook.built_bytes
    if built is None and shown.memory is None:
        return "?"
    needed = built if built is not None else shown.memory.total if shown.memory is not None else 0
    capacity = None if shown.memory is None else shown.memory.capacity
    of = f"/{capacity / 2**30:.0f}" if capacity is not None else ""
    return f"{needed / 2**30:.1f}{of} GiB"


def _live(shown: Preview) -> str:
    if shown.outlook is None:
        return "?"
    live = [each.live for each in shown.outlook.targets]
    if not live:
        return "-"
    return " ".join("-" if number is None else f"@{number}" for number in dict.fromkeys(live))


def _to_make(shown: Preview) -> str:
    if shown.outlook is None or shown.outlook.steps is None:
        return "?"
    made = [step.step for step in shown.outlook.steps if step.state == "to make"]
    if made:
        return made[0] if len(made) == 1 else f"{made[0]} to {made[-1]}"
    return "nothing" if all(each.same for each in shown.outlook.targets) else "roll out"


def _below(row: _Row) -> Iterator[str]:
    if row.error is not None:
        yield f"{row.error}{f'; {row.error.hint}' if row.error.hint else ''}"
    if row.shown is None:
        return
    yield from row.shown.unknown
    if row.shown.outlook is not None:
        yield from (f"a rebuild is refused: {refusal}" for refusal in refusals(row.shown.outlook))
