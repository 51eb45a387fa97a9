"""The releases of a model on a target: what each is, what became of it, and what the nodes have loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import UsageError
from tasks.explain.standing import Standing, standings, told_of
from tasks.explain.why_text import became
from tasks.steps.approve import told
from tasks.targets.changes import fields_of
from tasks.targets.gate_record import GateRecord
from tasks.targets.gate_records import GateRecords
from tasks.targets.node_report import ModelReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.watch_record import WatchOutcome, WatchRecords

HEADS = f"{'N':>4}  {'STATE':10} {'NODES':7} {'MADE':19}  RECIPE"
"""Above the first line of each release."""


@dataclass(frozen=True)
class ReleaseRow:
    """One release."""

    standing: Standing
    intent: Intent
    gates: tuple[GateRecord, ...] = ()
    """What its gates found, if its model's file asked for more than the test prompts."""
    watch: WatchOutcome | None = None
    """What came of the watch over it; None while it goes on, and where there was none."""

    def document(self) -> dict[str, JsonValue]:
        of = self.standing
        return {
            "release": self.intent.release,
            "state": of.word,
            "loaded": of.loaded,
            "intent": self.intent.model_dump(mode="json"),
            "result": None if of.result is None else of.result.model_dump(mode="json"),
            "gates": [gate.model_dump(mode="json") for gate in self.gates],
            "approval": None if of.approval is None else of.approval.model_dump(mode="json"),
            "shift": None if of.shift is None else of.shift.model_dump(mode="json"),
            "watch": None if self.watch is None else self.watch.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Releases:
    """All releases of a model, the newest first, and by node what the live nodes report of the model, if anything."""

    model: str
    target: str
    public: int | None
    rows: tuple[ReleaseRow, ...]
    nodes: Mapping[str, ModelReport | None]
    rolled_back: int | None = None
    """The release that was public before an older one took its place."""

    def document(self) -> dict[str, JsonValue]:
        """What `enginehouse releases --json` prints."""
        return {
            "model": self.model,
            "target": self.target,
            "public": self.public,
            "rolled_back": self.rolled_back,
            "releases": [row.document() for row in self.rows],
            "nodes": {
                node: None if report is None else report.model_dump(mode="json") for node, report in self.nodes.items()
            },
        }


def releases(target: Target, model: str) -> Releases:
    """All that the store has of a model's releases. Raises UsageError, code `release-missing`, if it has none."""
    current, _ = target.current(model)
    history = target.history(model)
    standing = standings(target, model, current, history)
    watches = WatchRecords(target, model)
    watched = watches.concluded()
    rows = [
        ReleaseRow(
            standing[intent.release],
            intent,
            _gates(target, model, result),
            watches.outcome(intent.release) if intent.release in watched else None,
        )
        for intent, result in history
    ]
    if not rows:
        raise UsageError(
            f"{model} was never released on target '{target.name}'",
            hint=f"enginehouse rebuild {model}",
            code="release-missing",
        )
    nodes = {node.node: node.models.get(model) for node in target.nodes()}
    # Promotions go up, so a previous release with a higher number was public until somebody rolled it back.
    public, previous = current.public, current.previous
    back = previous if public is not None and previous is not None and previous > public else None
    return Releases(model, target.name, public, tuple(reversed(rows)), nodes, back)


def _gates(target: Target, model: str, result: Result | None) -> tuple[GateRecord, ...]:
    if result is None or not result.asked:
        return ()
    return tuple(GateRecords(target, model, result.release).all())


def release_lines(found: Releases) -> Iterator[str]:
    """The same for people."""
    for row in found.rows:
        yield from _row_lines(row)
        if row.intent.release == found.rolled_back:
            yield f"      was rolled back from: `enginehouse history {found.model}` says by whom, when and why"
    for node, report in found.nodes.items():
        yield f"node {node}: " + ("not loaded" if report is None else f"public release {report.public} {report.error}")


def _row_lines(row: ReleaseRow) -> Iterator[str]:
    intent, of, result = row.intent, row.standing, row.standing.result
    recipe = " ".join(f"{field}={value}" for field, value in fields_of(intent.recipe).items())
    loaded = "loaded" if of.loaded else ""
    yield f"{intent.release:4}  {of.word:10} {loaded:7} {intent.created:%Y-%m-%d %H:%M:%S}  {recipe}".rstrip()
    yield from (f"      changed {change}" for change in intent.changes)
    for field, value in intent.lost.items():
        yield f"      {field} has no counterpart, and was {json.dumps(value)}"
    if result is None:
        return
    if of.approval is not None:
        yield f"      {told(of.approval)}, {of.approval.created:%Y-%m-%d %H:%M:%S}"
    elif of.word == "waiting":
        yield f"      `enginehouse approve {intent.model} --release {intent.release}`, or reject"
    if of.shift is not None:
        yield f"      {of.shift.strategy}, {of.shift.share:.1%} of the requests: {told_of(of.shift)}"
    if result.reason and result.state != "undecided":
        yield f"      {result.reason}"
    if result.undecided is not None:
        yield f"      undecided: the model's file said `{result.undecided}`"
    yield from became(result, row.watch)
    for prompt in result.prompts:
        verdict = "passed" if prompt.passed else "FAILED"
        yield f"      {verdict} {prompt.prompt} on {prompt.node} in {prompt.seconds} s: {prompt.answer!r}"
