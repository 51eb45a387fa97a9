"""Fields of a form as choices: the UI offers what the catalogue has, and the API takes any other name too.

A run may be asked for a model whose file is newer than the last deploy, or for one that is retired. So what is offered
must not be enforced. Prefect has one schema for both. Its UI looks `#/definitions/…` up in the schema as a whole; its
server goes by JSON Schema 2020-12 (8.2.1), by which a field with an `$id` is a document of its own, and reads the same
reference in there. Sources: `getSchemaDefinition` of prefect-ui-library, `prefect/utilities/schema_tools` of 3.8.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue


@dataclass(frozen=True)
class Choice:
    """What the form offers in the fields of these names, which are texts or lists of texts."""

    name: str
    fields: tuple[str, ...]
    offers: tuple[str, ...]


def with_choices(schema: Mapping[str, JsonValue], choices: Iterable[Choice]) -> dict[str, JsonValue]:
    """The schema of a flow's parameters, with choices in the fields that it has of those names."""
    properties, definitions = schema.get("properties"), schema.get("definitions", {})
    assert isinstance(properties, dict) and isinstance(definitions, dict)
    offered: dict[str, JsonValue] = {}
    chosen = dict(properties)
    for choice in choices:
        for field in choice.fields:
            if field in properties and choice.offers:
                chosen[field] = _choosing(properties[field], choice.name, field)
                offered[choice.name] = {"type": "string", "enum": [*choice.offers]}
    return {**schema, "properties": chosen, "definitions": {**definitions, **offered}} if offered else dict(schema)


def _choosing(schema: JsonValue, name: str, field: str) -> JsonValue:
    """The field with a reference to what is offered, on the text in it: itself, an item, or one of several forms."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "string":
        own: dict[str, JsonValue] = {name: {}}  # what the server finds: any text
        return {**schema, "$id": f"urn:enginehouse:{field}", "$ref": f"#/definitions/{name}", "definitions": own}
    if "items" in schema:
        return {**schema, "items": _choosing(schema["items"], name, field)}
    forms = schema.get("anyOf")
    if isinstance(forms, list):
        return {**schema, "anyOf": [_choosing(each, name, field) for each in forms]}
    return schema
