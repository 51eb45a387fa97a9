"""What would change on a server: three-way, so that what people have changed there stays.

A field of Enginehouse's own always gets the value that is wanted. A shared one (a schedule, a limit) gets it when
what is wanted is no longer what was wanted at the last deploy; in between it is theirs who use the server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Fields = Mapping[str, Any]
"""JSON values by name."""


@dataclass(frozen=True)
class Resource:
    """A work pool, deployment or automation as it is wanted."""

    kind: Literal["work pool", "deployment", "automation"]
    name: str
    own: Fields = field(default_factory=dict[str, Any])
    shared: Fields = field(default_factory=dict[str, Any])

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def stamps(self) -> dict[str, str]:
        """What tells whether a shared field is wanted as it was: digests, since a server keeps little text of ours."""
        return {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
            for name, value in self.shared.items()
        }


@dataclass(frozen=True)
class FieldChange:
    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class ResourceChange:
    """`kept` are shared fields that differ from what is wanted, since somebody has changed them on the server."""

    thing: Resource
    action: Literal["created", "changed", "unchanged"]
    fields: tuple[FieldChange, ...] = ()
    kept: tuple[FieldChange, ...] = ()

    @property
    def new(self) -> dict[str, Any]:
        """The values to set, by name."""
        return {each.name: each.new for each in self.fields}

    def document(self) -> dict[str, Any]:
        def told(fields: tuple[FieldChange, ...]) -> dict[str, Any]:
            return {each.name: {"old": each.old, "new": each.new} for each in fields}

        return {
            "kind": self.thing.kind,
            "name": self.thing.name,
            "action": self.action,
            "fields": told(self.fields),
            "kept": told(self.kept),
        }


def difference(thing: Resource, found: Fields | None, applied: Mapping[str, str] | None) -> ResourceChange:
    """`found` is what the server has, `applied` the stamps of the shared fields that were wanted at the last deploy.

    A thing that is on the server and was never deployed was made by other hands, which keep what they chose; a field
    that the last deploy did not know is set.
    """
    wanted = {**thing.own, **thing.shared}
    if found is None:
        made = tuple(FieldChange(name, None, value) for name, value in wanted.items() if value not in (None, ""))
        return ResourceChange(thing, "created", made)
    changed: list[FieldChange] = []
    kept: list[FieldChange] = []
    for name, value in wanted.items():
        if found[name] == value:
            continue
        theirs = name in thing.shared and (applied is None or applied.get(name) == thing.stamps[name])
        (kept if theirs else changed).append(FieldChange(name, found[name], value))
    return ResourceChange(thing, "changed" if changed else "unchanged", tuple(changed), tuple(kept))


def lines(change: ResourceChange) -> Iterator[str]:
    """For people: one line for the thing, and one for each field that changes or is kept."""
    yield f"{change.action:9}  {change.thing.kind} {change.thing.name}"
    for each in change.fields:
        # A form that is new is told by its flow.
        if change.action == "changed" or not isinstance(each.new, dict | list):
            yield from _field_lines(each)
    for each in change.kept:
        yield f"    {each.name}: stays {_short(each.old)}, as it was set on the server (here: {_short(each.new)})"


def _field_lines(change: FieldChange) -> Iterator[str]:
    values: tuple[Any, Any] = change.old, change.new
    if not all(isinstance(value, dict) for value in values):
        yield f"    {change.name}: {_short(change.old)} → {_short(change.new)}"
        return
    old, new = cast("tuple[Fields, Fields]", values)
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield from _field_lines(FieldChange(f"{change.name}.{name}", old.get(name), new.get(name)))


def _short(value: Any) -> str:
    text = "none" if value in (None, "") else str(value).strip().replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}…"
