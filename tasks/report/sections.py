"""What is told of a release, in the order of the page: the verdict first, the commands last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import JsonValue

from tasks.models.gates import SMOKE
from tasks.report import after
from tasks.report.blocks import Answers, Block, Command, Distributions, Intervals, Section, Table, Verdicted, Words
from tasks.report.compared import compared_rows
from tasks.report.release import Made, ReleaseReport
from tasks.report.shown import MOST_ANSWERS, MOST_PICTURES, MOST_ROWS, first
from tasks.targets.changes import changes
from tasks.targets.gate_record import Figure, GateRecord, PromptResult, Verdict

_BECAME = {"passed": "passed", "refused": "was refused"}
_BESIDE: dict[Literal["live", "reference"], str] = {"live": "live", "reference": "the reference"}
_IDENTITY_DIGITS = 12
"""Of 64: as many as commands take for a whole one."""


def sections(report: ReleaseReport) -> tuple[Section, ...]:
    """Those that have something to tell, and what to type."""
    return *told(report), Section("Commands", tuple(_commands(report)))


def told(report: ReleaseReport) -> tuple[Section, ...]:
    """Those that have something to tell."""
    found = (Section(title, tuple(tell(report))) for title, tell in SECTIONS)
    return tuple(section for section in found if section.blocks)


def title(report: ReleaseReport) -> str:
    intent = report.intent
    return f"{intent.model} release {intent.release} on {report.target}"


def _verdict(report: ReleaseReport) -> Iterator[Block]:
    result = report.result
    if result is None:
        yield Verdicted(None, "no gate has decided yet")
    else:
        what = "every gate passed" if result.gates else "the test prompts passed" if result.prompts else ""
        yield Verdicted(result.state, result.reason or what)
        if result.undecided is not None:
            yield Words(f"The model's file says `{result.undecided}` of a release that is undecided.")
        if result.gates:
            yield Table(("gate", "verdict", "samples", "why"), tuple(map(_verdict_row, result.gates)))
    against = "No release was live." if report.before is None else f"Compared with release {report.before.release}."
    run = f" Run {report.intent.flow_run}." if report.intent.flow_run else ""
    yield Words(f"Made on {report.intent.created:%Y-%m-%d %H:%M:%S} UTC from {report.intent.source}. {against}{run}")
    if report.wave is not None:
        why = f": {report.wave.reason}" if report.wave.reason else ""
        yield Words(f"Rolled out in {report.wave}, which {_BECAME[report.wave.state]}{why}.")
    if report.current is not None:
        public = report.current.public
        answers = "no release" if public is None else f"release {public}"
        yield Words(f"Now: {report.state}. The public name answers with {answers}.")


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    return verdict.gate, verdict.state, str(verdict.samples), verdict.reason


def _changed(report: ReleaseReport) -> Iterator[Block]:
    intent, before = report.intent, report.before
    rows = [(change.field, _text(change.old), _text(change.new)) for change in intent.changes]
    if before is not None:
        if before.source != intent.source:
            rows.insert(0, ("weights", before.source, intent.source))
        adapters = changes(dict[str, JsonValue](before.adapters), dict[str, JsonValue](intent.adapters))
        rows += [(f"adapter {change.field}", _text(change.old), _text(change.new)) for change in adapters]
    if report.why:
        yield Words(f"{report.why}.")
    if rows:
        kept, more = first(rows, MOST_ROWS)
        yield Table(("field", "before", "now"), tuple(kept))
        yield from _left_out(more, "fields", "intent.json")
    elif before is not None and not report.why:
        yield Words("Recipe, serving, weights and adapters are those of the release before.")
    if intent.lost:
        lost = tuple((field, _text(old)) for field, old in intent.lost.items())
        yield Table(("without a counterpart in this kind", "it was"), lost[:MOST_ROWS])


def _gates(report: ReleaseReport) -> Iterator[Block]:
    verdicts = {} if report.result is None else {each.gate: each for each in report.result.gates}
    for record in report.gates:
        evidence, verdict = record.evidence, verdicts.get(record.gate)
        yield Verdicted(None if verdict is None else verdict.state, _measured(record, verdict))
        comparisons, more = first(evidence.comparisons, MOST_ROWS)
        if comparisons:
            yield compared_rows(comparisons)
            yield Intervals(tuple(comparisons))
            yield from _left_out(more, "comparisons", f"gates/{record.gate}.json")
        figures, more = first(evidence.figures, MOST_ROWS)
        if figures:
            yield Table(("figure", "candidate", "live"), tuple(map(_figure_row, figures)))
            yield from _left_out(more, "figures", f"gates/{record.gate}.json")
        if evidence.histograms:
            yield Distributions(evidence.histograms[:MOST_PICTURES])
        told = [*(f"Failed: {each}" for each in evidence.failures), *(f"Missing: {each}" for each in evidence.gaps)]
        yield from map(Words, [*told, *evidence.notes][:MOST_ROWS])


def _measured(record: GateRecord, verdict: Verdict | None) -> str:
    """The gate, and how long it took. Its reason stands in the table of verdicts."""
    level = None if verdict is None else verdict.level
    could = "" if level is None else f", and could refuse at a level of {level:.3g}"
    return f"{record.gate}: measured for {record.seconds:.0f} s{could}"


def _figure_row(each: Figure) -> tuple[str, ...]:
    unit = f" {each.unit}" if each.unit else ""
    live = "" if each.live is None else f"{each.live:.4g}{unit}"
    return each.name, f"{each.candidate:.4g}{unit}", live


def _differing(report: ReleaseReport) -> Iterator[Block]:
    """Answers of candidate and other that differ; where nothing was compared, those to the test prompts."""
    for record in report.gates:
        pairs, more = first(record.evidence.differing, MOST_ANSWERS)
        for pair in pairs:
            note = f"{record.gate}: {pair.note}".strip(": ")
            yield Answers(pair.question, pair.candidate, pair.other, _BESIDE[pair.against], note)
        yield from _left_out(more, "pairs", f"gates/{record.gate}.json")


def _prompts(report: ReleaseReport) -> Iterator[Block]:
    asked = report.result.prompts if report.result is not None and report.result.prompts else _of_smoke(report)
    prompts, more = first(asked, MOST_ROWS)
    if prompts:
        yield Table(("prompt", "verdict", "node", "seconds", "answer"), tuple(map(_prompt_row, prompts)))
        yield from _left_out(more, "answers", "result.json")


def _of_smoke(report: ReleaseReport) -> tuple[PromptResult, ...]:
    return tuple(prompt for record in report.gates if record.gate == SMOKE for prompt in record.evidence.prompts)


def _prompt_row(each: PromptResult) -> tuple[str, ...]:
    verdict = "passed" if each.passed else "; ".join(("failed", *each.failures))
    return each.prompt, verdict, each.node, f"{each.seconds:.3g}", each.answer


def _lineage(report: ReleaseReport) -> Iterator[Block]:
    rows = (("weights", report.intent.source, "", "", ""), *map(_made_row, reversed(report.made_of)))
    yield Table(("what", "name", "bytes", "made", "by"), rows)


def _made_row(made: Made) -> tuple[str, ...]:
    name = made.ref.identity[:_IDENTITY_DIGITS]
    if made.manifest is None:
        return made.ref.kind, name, "", "without a manifest", ""
    manifest, producer = made.manifest, made.manifest.producer
    state = "" if manifest.state == "present" else f", {manifest.state}"
    moment = f"{manifest.created:%Y-%m-%d %H:%M}{state}"
    return made.ref.kind, name, f"{manifest.size:,}", moment, f"{producer.task} on {producer.host}"


def _commands(report: ReleaseReport) -> Iterator[Block]:
    intent, where = report.intent, f"--target {report.target}"
    name, number = intent.model, intent.release
    if report.result is not None and report.result.may_be_public and report.state not in ("live", "refused"):
        yield Command(
            f"enginehouse rollback {name} --to {number} {where}", "makes this release public, again or at last"
        )
    if report.before is not None and report.state in ("live", None):
        yield Command(
            f"enginehouse rollback {name} --from {number} {where}", "gives the name back, if this release has it"
        )
    if report.before is not None:
        yield Command(
            f"enginehouse why {name}@{number} --against {name}@{report.before.release} {where}",
            "says why it was made, step by step",
        )
    yield Command(f"enginehouse verify {name}@{number} {where}", "reads every byte of it against its manifests")
    yield Command(f"enginehouse lineage {name}@{number} {where}", "shows where it comes from, and what uses it")
    yield Command(f"enginehouse report {name}@{number} {where}", "tells all of this as it is now")


def _left_out(count: int, what: str, record: str) -> Iterator[Block]:
    if count:
        yield Words(f"{count} more {what} are in its record, {record}.")


def _text(value: JsonValue) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


SECTIONS: tuple[tuple[str, Callable[[ReleaseReport], Iterator[Block]]], ...] = (
    ("Verdict", _verdict),
    ("What changed", _changed),
    ("Gates", _gates),
    ("Answers that differ", _differing),
    ("Test prompts", _prompts),
    ("Approval", after.approval),
    ("Requests as a candidate", after.traffic),
    ("Watch", after.watch),
    ("Made from", _lineage),
)
"""Each by its heading, in the order of the page. One that yields nothing is left out."""
