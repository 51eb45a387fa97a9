"""Which rebuilds of the release watch start now: a canary first, the rest when it has passed, a few at a time.

A run of the watch starts what may start, and ends. It waits for nothing. The next run, by the schedule or because a
rebuild has ended, looks how the rebuilds have ended and goes on. So a run may die, or run twice, at any point.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tasks.models.spec import Model
from tasks.watch.record import FailedRebuilds, Followed, WatchRecord, subject_of
from tasks.watch.verdict import Row

WATCH_TAG = "release-watch"
"""The tag in Prefect of every rebuild that the watch starts."""
LATER_QUEUE = "later"
"""The work queue of build pools for builds of the watch. What people start uses the pool's own queue and goes first."""

_TRIES_AFTER_CRASHES = 3
_REASON_CHARACTERS = 300

Table = Mapping[str, tuple[Row, ...]]
"""Rows by model."""


@dataclass(frozen=True)
class RebuildRun:
    """A rebuild that the watch has started."""

    id: str
    state: Literal["going", "waiting", "completed", "failed", "crashed"]
    """`waiting`: it ended, and left a candidate to a person. `tasks.watch.waiting` says what that has come to."""
    reason: str = ""
    """The message of a run that failed or crashed."""


@dataclass(frozen=True)
class Start:
    """A rebuild to start. `key` is its idempotency key: whoever asks for it, however often, gets the same run."""

    model: str
    version: str
    key: str


def due(table: Table) -> dict[str, Row]:
    """The row with verdict `rebuild` of each model that has one."""
    return {row.model: row for rows in table.values() for row in rows if row.verdict == "rebuild"}


def run_key(model: Model, row: Row, record: WatchRecord) -> str:
    """The idempotency key of a rebuild. A changed file has another key, and so has another try."""
    attempt = _attempt(model, row, record)
    return f"watch:{model.name}:{row.version}:{subject_of(model)}:{attempt.count if attempt else 0}"


def settled(
    models: Mapping[str, Model],
    rows: Mapping[str, Row],
    record: WatchRecord,
    runs: Mapping[str, RebuildRun],
    unread: Container[str] = (),
) -> WatchRecord:
    """The record with the outcome of `runs` (by key). Models that the catalogue no longer has are dropped.

    Not those in `unread`, whose files have mistakes: mended, they would go back to the version that the file names.
    """
    followed = {name: each for name, each in record.followed.items() if name in models or name in unread}
    attempts = {name: each for name, each in record.attempts.items() if name in models or name in unread}
    for name, row in rows.items():
        run = runs.get(run_key(models[name], row, record))
        if run is None or run.state == "going":
            continue
        if run.state == "completed":
            if name not in followed or followed[name].version != row.version:
                followed[name] = Followed(version=row.version, flow_run=run.id)
            attempts.pop(name, None)
            continue
        before = _attempt(models[name], row, record)
        count = (before.count if before else 0) + 1
        attempts[name] = FailedRebuilds(
            version=row.version,
            subject=subject_of(models[name]),
            count=count,
            over=run.state == "failed" or count >= _TRIES_AFTER_CRASHES,
            reason=run.reason[:_REASON_CHARACTERS],
            flow_run=run.id,
        )
    return record.model_copy(update={"followed": followed, "attempts": attempts})


def tried_again(record: WatchRecord, names: Iterable[str]) -> WatchRecord:
    """The record in which the failures of these models no longer hold them back."""
    attempts = {
        name: attempt.model_copy(update={"over": False}) if name in names else attempt
        for name, attempt in record.attempts.items()
    }
    return record.model_copy(update={"attempts": attempts})


def next_wave(
    models: Mapping[str, Model],
    rows: Mapping[str, Row],
    record: WatchRecord,
    runs: Mapping[str, RebuildRun],
    places: int,
) -> tuple[dict[str, Row], list[Start]]:
    """The rows of `rows` with what becomes of them as their reason, and the rebuilds to start, at most `places`."""
    decided: dict[str, Row] = {}
    starts: list[Start] = []
    for version in sorted({row.version for row in rows.values()}):
        group = [row for _, row in sorted(rows.items()) if row.version == version]
        failed = {row.model: attempt for row in group if (attempt := _over(models[row.model], row, record))}
        passed = any(each.version == version for each in record.followed.values())
        canary = None if passed else _canary(models, group)
        for row in group:
            key = run_key(models[row.model], row, record)
            if row.model in failed:
                decided[row.model] = _held(row, "its rebuild failed", failed[row.model])
            elif key in runs:
                decided[row.model] = replace(row, reason=f"{row.reason}; is being rebuilt")
            elif canary is not None and row.model != canary and canary in failed:
                decided[row.model] = _held(row, f"the canary {canary} failed", failed[canary])
            elif canary is not None and row.model != canary:
                decided[row.model] = replace(row, reason=f"{row.reason}; waits for the canary {canary}")
            elif len(starts) < places:
                starts.append(Start(row.model, row.version, key))
                what = "starts now" if canary is None else "starts now, as the canary"
                decided[row.model] = replace(row, reason=f"{row.reason}; {what}")
            else:
                decided[row.model] = replace(row, reason=f"{row.reason}; waits for others to end")
    return decided, starts


def _canary(models: Mapping[str, Model], group: Sequence[Row]) -> str:
    named = [row.model for row in group if models[row.model].updates.canary]
    return (named or [group[0].model])[0]


def _attempt(model: Model, row: Row, record: WatchRecord) -> FailedRebuilds | None:
    attempt = record.attempts.get(model.name)
    same = attempt is not None and (attempt.version, attempt.subject) == (row.version, subject_of(model))
    return attempt if same else None


def _over(model: Model, row: Row, record: WatchRecord) -> FailedRebuilds | None:
    attempt = _attempt(model, row, record)
    return attempt if attempt is not None and attempt.over else None


def _held(row: Row, what: str, attempt: FailedRebuilds) -> Row:
    return replace(row, verdict="held back", reason=f"{what}: {attempt.reason}")
