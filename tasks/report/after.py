"""What is told of what came after the gates: a person's decision, requests of a canary or shadow, and the watch."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.report.blocks import Block, Intervals, Table, Verdicted, Words
from tasks.report.compared import compared_rows
from tasks.report.release import ReleaseReport
from tasks.report.shown import MOST_ROWS, first
from tasks.targets.gate_record import VerdictState
from tasks.targets.observed import Observed
from tasks.targets.traffic import Canary, Shadow
from tasks.targets.watch_record import WatchState

_MOMENT = "%Y-%m-%d %H:%M:%S UTC"
_WATCHED: dict[WatchState, VerdictState | None] = {
    "healthy": "passed",
    "undecided": "undecided",
    "overtaken": None,
    "returned": "refused",
    "failing": "refused",
}


def approval(report: ReleaseReport) -> Iterator[Block]:
    """Who decided, when, and what that one noted; or until when somebody may."""
    request, decided = report.request, report.approval
    rows: list[tuple[str, ...]] = []
    if request is not None:
        hours = f"not promoted without a decision within {request.timeout_s / 3600:.4g} h"
        rows.append(("asked", "", f"{request.created:{_MOMENT}}", request.flow_run, hours))
    if decided is not None:
        moment = f"{decided.created:{_MOMENT}}"
        rows.append((decided.state, decided.by or "nobody", moment, decided.flow_run, decided.note))
    if rows:
        yield Table(("what", "who", "when", "run", "note"), tuple(rows))
    if request is not None and decided is None:
        yield Words("Nobody has decided yet.")


def traffic(report: ReleaseReport) -> Iterator[Block]:
    """What the requests of clients said of a candidate, and which go to it now."""
    shift, now = report.shift, report.traffic
    if shift is not None:
        reason = f": {shift.reason}" if shift.reason else ""
        yield Verdicted(shift.state, f"{shift.strategy}, at last {shift.share:.1%} of the requests{reason}")
        yield Words(f"Decided on {shift.created:{_MOMENT}}.")
    parts: tuple[Canary | Shadow | None, ...] = () if now is None else (now.canary, now.shadow)
    for part in parts:
        if part is not None and part.release == report.intent.release:
            what = "go to it" if isinstance(part, Canary) else "are copied to it"
            yield Words(f"Now: {part.share:.1%} of the requests {what}.")


def watch(report: ReleaseReport) -> Iterator[Block]:
    """What clients saw of it once it was public, and whether it kept the public name."""
    if (outcome := report.watch) is None:
        if report.watching is not None:
            back = report.watching.previous
            to = "no release to give the name back to" if back is None else f"release {back} to give the name back to"
            yield Words(f"Now: it is watched, with {to}.")
        return
    yield Verdicted(_WATCHED[outcome.state], f"{outcome.state} after {outcome.seconds:.0f} s: {outcome.reason}")
    run = f", by run {outcome.flow_run}" if outcome.flow_run else ""
    yield Words(f"Over on {outcome.created:{_MOMENT}}{run}.")
    if outcome.state == "returned":
        yield Words(f"Release {outcome.previous} got the public name back.")
    comparisons, _ = first(outcome.comparisons, MOST_ROWS)
    if comparisons:
        yield compared_rows(comparisons)
        yield Intervals(tuple(comparisons))
    yield Table(("seen of it", "requests"), tuple(_seen(outcome.observed, outcome.probes)))


def _seen(observed: Observed, probes: int) -> Iterator[tuple[str, str]]:
    for how, count in sorted(observed.ended.items())[:MOST_ROWS]:
        yield f"clients' requests that ended with {how}", f"{count:,}"
    yield "clients' requests in all", f"{sum(observed.ended.values()):,}"
    yield "test prompts sent to it", f"{probes:,}"
