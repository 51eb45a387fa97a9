"""The differences between two JSON documents, field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, JsonValue


class FieldChange(BaseModel):
    """One field whose value differs. None also stands for a missing field, and for an empty list or object."""

    model_config = ConfigDict(frozen=True)

    field: str
    """The names of nested objects joined by dots: `llm_args.kv_cache_config.tokens_per_block`."""
    old: JsonValue
    new: JsonValue

    def __str__(self) -> str:
        return f"{self.field}: {_text(self.old)} → {_text(self.new)}"


def fields_of(document: Mapping[str, JsonValue], above: str = "") -> dict[str, JsonValue]:
    """The values of a document by their dotted names, which begin with `above`. None and empty ones are left out."""
    fields: dict[str, JsonValue] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            fields |= fields_of(value, f"{above}{name}.")
        elif value not in (None, []):
            fields[above + name] = value
    return fields


def changes(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> tuple[FieldChange, ...]:
    """The fields that differ: those of `new` in its order, then those that only `old` has."""
    before, after = fields_of(old), fields_of(new)
    return tuple(
        FieldChange(field=field, old=before.get(field), new=after.get(field))
        for field in dict.fromkeys([*after, *before])
        if before.get(field) != after.get(field)
    )


def _text(value: JsonValue) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
