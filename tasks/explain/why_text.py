"""What `why` found, in words and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from pydantic import JsonValue

from tasks.explain.why import GROUPS, OWN_STEPS, Difference, Explanation
from tasks.models.gates import SMOKE
from tasks.targets.release import Result
from tasks.targets.watch_record import WatchOutcome

_DIGEST = re.compile(r"(sha256:|git-blob-sha1:|etag:|wheel-sha256:)?([0-9a-f]{12})[0-9a-f]{20,}")
_NAMED_FIELDS = 4
"""Of one subject, in the summary; if more have changed it gives their number. The lines below it name all."""


def summary(found: Explanation) -> str:
    """One sentence: what changed and into what, and what did not."""
    parts = _subjects(found.changes)
    if unchanged := [name for name in found.unchanged if name != OWN_STEPS]:
        parts.append(f"{_listed(unchanged)} unchanged")
    if not found.changes and any(step.bytes_differ for step in found.steps):
        parts.append("rebuilt all the same, and the bytes came out different")
    return "; ".join(parts)


def told(changes: Iterable[Difference]) -> str:
    """What changed and into what, in one sentence."""
    return "; ".join(_subjects(changes))


def _subjects(changes: Iterable[Difference]) -> list[str]:
    by_subject: dict[str, list[Difference]] = {}
    for change in changes:
        by_subject.setdefault(change.subject, []).append(change)
    return [_subject(name, part) for name, part in by_subject.items()]


def _subject(name: str, changes: list[Difference]) -> str:
    if len(changes) > _NAMED_FIELDS:
        return f"{name}: {len(changes)} fields changed"
    words = ", ".join(f"{change.field} {_change(change)}".strip() for change in changes)
    # A tool is one field, and the subject already names it.
    return f"{name} {_change(changes[0])}" if len(changes) == 1 and name not in GROUPS else f"{name}: {words}"


def _change(change: Difference) -> str:
    return f"{_value(change.old)} → {_value(change.new)}"


def _value(value: JsonValue) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return _DIGEST.sub(r"\1\2…", text)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def lines(found: Explanation) -> Iterator[str]:
    """The summary, then each step from the top with its fields."""
    yield summary(found)
    yield ""
    yield f"{found.old} → {found.new}"
    for step in found.steps:
        if step.old.identity == step.new.identity:
            words = "the same, rebuilt with other bytes" if step.bytes_differ else "the same"
            yield f"  {step.kind:10} {step.new.identity[:12]}  {words}"
            continue
        reason = "" if step.changes else "  because of what it is made from"
        yield f"  {step.kind:10} {step.old.identity[:12]} → {step.new.identity[:12]}{reason}"
        for change in step.changes:
            yield f"    {change.subject} {change.field}: {_change(change)}"
    yield from became(found.result, found.watch)


def became(result: Result | None, watch: WatchOutcome | None) -> Iterator[str]:
    """What became of a release: the verdicts of its gates beside the test prompts, and of its watch, a line each."""
    for gate in result.gates if result is not None else ():
        if gate.kind != SMOKE:
            yield f"      {gate.state} {gate.gate}, {gate.samples} samples: {gate.reason}"
    if watch is not None:
        seconds = watch.seconds
        time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        yield f"      watched for {time}, {watch.state}: {watch.reason}"


def document(found: Explanation) -> dict[str, JsonValue]:
    """The explanation as `--json` prints it."""
    return {
        "summary": summary(found),
        "old": found.old,
        "new": found.new,
        "unchanged": list(found.unchanged),
        "steps": [
            {
                "kind": step.kind,
                "old": str(step.old),
                "new": str(step.new),
                "made_anew": step.rebuilt,
                "changes": [asdict(change) for change in step.changes],
            }
            for step in found.steps
        ],
        "result": None if found.result is None else found.result.model_dump(mode="json"),
        "watch": None if found.watch is None else found.watch.model_dump(mode="json"),
    }
