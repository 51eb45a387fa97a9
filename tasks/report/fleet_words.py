"""The fleet in words, whoever prints them: the cells of a model's line, what is not as it should be, and nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from infra.units import age
from tasks.explain.fleet_view import Fleet, ModelRow, Run

HEADS = ("model", "live", "kind", "age", "verdict", "nodes", "state")
NOTHING = "no model is shown: none is live or has a file here, or none fits what was asked for"
NO_RUNS = "runs in progress are not known: Prefect did not answer"


@dataclass(frozen=True)
class Detail:
    """Something to know of a model beside its cells. `run` is the flow run that it tells of, if it does."""

    label: Literal["newest", "running", "stale", "alert"]
    text: str
    run: Run | None = None


@dataclass(frozen=True)
class TargetRows:
    """The models of one target. `target` is empty for those whose file names none."""

    target: str
    nodes: int
    models: tuple[ModelRow, ...]

    @property
    def title(self) -> str:
        return f"target {self.target}, {self.nodes} node{'s' * (self.nodes != 1)}" if self.target else "of no target"


def by_target(fleet: Fleet) -> Iterator[TargetRows]:
    """The models, target by target."""
    rows = sorted(fleet.models, key=lambda row: row.target)
    for target, models in groupby(rows, lambda row: row.target):
        yield TargetRows(target, sum(node.target == target for node in fleet.nodes), tuple(models))


def cells(row: ModelRow) -> tuple[str, ...]:
    """One text for each of HEADS."""
    without_file = row.file == "missing" and row.release is not None
    return (
        row.model,
        "-" if row.release is None else f"@{row.release}",
        " ".join(filter(None, (row.kind, row.runtime))) or "-",
        age(row.age_s),
        verdict(row) or "-",
        "-" if row.release is None else f"{row.nodes_ready}/{row.nodes}",
        f"{row.serving}, no file" if without_file else row.serving,
    )


def verdict(row: ModelRow) -> str:
    """What its watch says while there is one, else its gates."""
    return row.watch if row.watch in ("watching", "failing") else row.verdict


def details(row: ModelRow) -> Iterator[Detail]:
    """Only what there is to say."""
    if row.newest is not None:
        reason = f": {row.newest.reason}" if row.newest.reason else ""
        yield Detail(
            "newest", f"release {row.newest.release}, {age(row.newest.age_s)} old, is {row.newest.state}{reason}"
        )
    for run in row.runs:
        since = f"for {age(run.seconds)}" if run.seconds else ""
        yield Detail("running", f"{run.flow}, {run.state.lower()} {since}".rstrip(), run)
    for reason in row.stale:
        yield Detail("stale", f"its file changed {reason.why}" if reason.what == "file" else reason.why)
    for alert in row.alerts:
        yield Detail("alert", alert)


def troubled_nodes(fleet: Fleet) -> Iterator[str]:
    """A line for each node that is in trouble."""
    for node in fleet.nodes:
        text = f"is silent for {age(node.age_s)}" if node.state == "silent" else node.error
        if text:
            yield f"node {node.name} of {node.target}: {text}"
