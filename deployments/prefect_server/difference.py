"""What would change on a server: three-way, so that what people have changed on it stays.

A field of Enginehouse's own always gets the wanted value. A shared one (a schedule, a limit) gets it only if another
value was wanted at the last deploy; in between it belongs to the people who use the server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

Fields = Mapping[str, JsonValue]


@dataclass(frozen=True)
class Resource:
    """A work pool, deployment or automation as it is wanted."""

    kind: Literal["work pool", "deployment", "automation"]
    name: str
    own: Fields = field(default_factory=dict[str, JsonValue])
    shared: Fields = field(default_factory=dict[str, JsonValue])

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def stamps(self) -> dict[str, str]:
        """A digest of each shared field: equal means that it is wanted as before. A variable has no room for more."""
        return {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
            for name, value in self.shared.items()
        }


@dataclass(frozen=True)
class ChangedField:
    name: str
    old: JsonValue
    new: JsonValue


@dataclass(frozen=True)
class ResourceChange:
    """`kept` are shared fields that differ from what is wanted, since somebody has changed them on the server."""

    resource: Resource
    action: Literal["created", "changed", "unchanged"]
    fields: tuple[ChangedField, ...] = ()
    kept: tuple[ChangedField, ...] = ()

    @property
    def new(self) -> dict[str, JsonValue]:
        """The values to set, by name."""
        return {each.name: each.new for each in self.fields}

    def document(self) -> dict[str, JsonValue]:
        """The change as `enginehouse deploy --json` prints it."""
        return {
            "kind": self.resource.kind,
            "name": self.resource.name,
            "action": self.action,
            "fields": {each.name: {"old": each.old, "new": each.new} for each in self.fields},
            "kept": {each.name: {"old": each.old, "new": each.new} for each in self.kept},
        }


def difference(resource: Resource, found: Fields | None, applied: Mapping[str, str] | None) -> ResourceChange:
    """`found` is what the server has, `applied` the stamps of the shared fields that were wanted at the last deploy.

    A resource that is on the server and was never deployed was made by other people, who keep what they chose. A field
    that the last deploy did not know is set.
    """
    wanted = {**resource.own, **resource.shared}
    if found is None:
        made = tuple(ChangedField(name, None, value) for name, value in wanted.items() if value not in (None, ""))
        return ResourceChange(resource, "created", made)
    changed: list[ChangedField] = []
    kept: list[ChangedField] = []
    for name, value in wanted.items():
        if found[name] == value:
            continue
        theirs = name in resource.shared and (applied is None or applied.get(name) == resource.stamps[name])
        (kept if theirs else changed).append(ChangedField(name, found[name], value))
    return ResourceChange(resource, "changed" if changed else "unchanged", tuple(changed), tuple(kept))


def lines(change: ResourceChange) -> Iterator[str]:
    """For people: one line for the resource, and one for each field that changes or is kept."""
    yield f"{change.action:9}  {change.resource.kind} {change.resource.name}"
    for each in change.fields:
        # What a new form contains is seen in its flow.
        if change.action == "changed" or not isinstance(each.new, dict | list):
            yield from _field_lines(each)
    for each in change.kept:
        yield f"    {each.name}: stays {_short(each.old)}, as it was set on the server (wanted: {_short(each.new)})"


def _field_lines(change: ChangedField) -> Iterator[str]:
    old, new = change.old, change.new
    if isinstance(old, list) and isinstance(new, list):
        gone, came = ([each for each in one if each not in other] for one, other in ((old, new), (new, old)))
        words = [
            f"{word} {_short(', '.join(map(str, each)))}" for word, each in (("with", came), ("without", gone)) if each
        ]
        yield f"    {change.name}: {', '.join(words) or 'in another order'}"
        return
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield f"    {change.name}: {_short(old)} → {_short(new)}"
        return
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield from _field_lines(ChangedField(f"{change.name}.{name}", old.get(name), new.get(name)))


def _short(value: JsonValue) -> str:
    text = "none" if value in (None, "") else str(value).strip().replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}…"
