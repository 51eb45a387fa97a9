"""What the next rebuild would change, in words."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.cli.people import size
from tasks.explain.upcoming import Part, Upcoming
from tasks.explain.why_text import told


def diff_lines(found: Upcoming) -> Iterator[str]:
    """Which release is live, the fields that change, and a line for each artifact."""
    where = f"{found.model} on '{found.target}'"
    if found.live is None:
        yield f"{where}: no release is live, and the next rebuild makes one"
    elif not found.is_new:
        yield f"{where}: the next rebuild changes nothing of release {found.live}"
    else:
        yield f"{where}: what the next rebuild changes of release {found.live}"
    yield from (f"  {change}" for change in found.fields)
    yield from (f"  {part.kind:10} {_size(part):>10}  {_words(part)}" for part in found.parts)


def _size(part: Part) -> str:
    return "-" if part.bytes is None else size(part.bytes)


def _words(part: Part) -> str:
    if part.state == "same":
        return "the same"
    why = told(part.changes)
    if not why and part.old is not None:
        why = "because of what it is made from"
    return f"{part.state}: {why}" if why else part.state
