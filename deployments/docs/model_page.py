"""Reference of a model's file, from the classes that read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

from pydantic import JsonValue

from deployments.docs.markdown import code, in_table, table
from tasks.models.spec import Model

_Schema = Mapping[str, JsonValue]

_HEAD = """\
# A model's file

`NAME.yaml` in the catalogue. Each section below is one block of it, and the first is the file itself. A field without
a default has to be there. An unknown field is an error with its line and the nearest name. Rules that join several
fields are told by the errors, before anything is fetched; `enginehouse plan NAME --offline` checks a file.
"""

_TITLES = {"TrtEngineRecipe": "recipe, kind trt-engine", "LlmApiRecipe": "recipe, kind llmapi"} | {
    "LlamaCppRecipe": "recipe, kind llamacpp",
    "TransformersRecipe": "recipe, kind transformers",
    "AgreementSpec": "gates, kind agreement",
    "QualitySpec": "gates, kind quality",
    "PerformanceSpec": "gates, kind performance",
    "CommandSpec": "gates, kind command",
}
"""Blocks of which a file has one of several."""


def model_page() -> Iterator[str]:
    """The lines of the page: the file, then each block in the order in which it is met first."""
    document = cast("_Schema", Model.model_json_schema(by_alias=True))
    blocks = cast("Mapping[str, _Schema]", document.get("$defs", {}))
    yield from _HEAD.splitlines()
    yield ""
    met: dict[str, str] = {}
    yield from _section("the file", document, "", met)
    told: set[str] = set()
    while left := [name for name in met if name not in told and "properties" in blocks[name]]:
        told.add(left[0])
        yield from _section(_title(left[0], met), blocks[left[0]], met[left[0]], met)


def _section(title: str, block: _Schema, path: str, met: dict[str, str]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    if path:
        yield in_table(str(block.get("description", "")).split("\n\n")[0])
        yield ""
    required = cast("list[str]", block.get("required", []))
    rows: list[tuple[str, str, str, str]] = []
    for name, field in cast("Mapping[str, _Schema]", block.get("properties", {})).items():
        inner = f"{path}.{name}".removeprefix(".")
        for each in _blocks(field):
            met.setdefault(each, inner)
        default = "" if name in required else _default(field.get("default"))
        rows.append((code(name), _type(field), default, in_table(_meaning(field))))
    if isinstance(further := block.get("additionalProperties"), dict):
        for each in _blocks(further):
            met.setdefault(each, path)
        rows.append(("`NAME`", _type(further), "", "Any other key, with a block of its kind."))
    yield from table(("field", "form", "default", "meaning"), rows)


def _title(name: str, met: Mapping[str, str]) -> str:
    return _TITLES.get(name) or met[name].replace("[]", "")


def _meaning(field: _Schema) -> str:
    constant = field.get("const")
    return str(field.get("description") or (f"What makes it a block of this kind: `{constant}`." if constant else ""))


def _default(value: JsonValue) -> str:
    match value:
        case None | [] | {} | "":
            return "none"
        case dict():
            return "as below"
        case str():
            return code(value)
        case _:
            return code(json.dumps(value))


def _blocks(field: JsonValue) -> Iterator[str]:
    """The names of the blocks that a field may hold."""
    match field:
        case {"$ref": str(name)}:
            yield name.rpartition("/")[2]
        case dict():
            for key, inner in field.items():
                if key != "discriminator":
                    yield from _blocks(inner)
        case list():
            for inner in field:
                yield from _blocks(inner)
        case _:
            pass


def _type(field: JsonValue) -> str:
    """What may be written, in a few words."""
    match field:
        case {"const": str(value)}:
            return code(value)
        case {"enum": list(values)}:
            return ", ".join(code(str(value)) for value in values)
        case {"anyOf": list(forms)} | {"oneOf": list(forms)}:
            return " or ".join(dict.fromkeys(filter(None, map(_type, forms))))
        case {"$ref": "#/$defs/JsonValue"}:
            return "anything"
        case {"$ref": str()}:
            return "a block"
        case {"type": "array", "items": items} | {"type": "array", "prefixItems": [items, *_]}:
            return f"a list: {_type(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"by name: {_type(values) or 'anything'}"
        case {"type": "object"}:
            values = list(cast("Mapping[str, JsonValue]", field.get("patternProperties", {})).values())
            return f"by name: {_type(values[0]) if values else 'anything'}"
        case {"type": "null"}:
            return ""
        case {"type": str(name)}:
            return _WORDS.get(name, name) + _range(cast("_Schema", field))
        case _:
            return "anything"


_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a block",
}


def _range(field: _Schema) -> str:
    bounds = [
        f"{words} {json.dumps(field[key])}"
        for key, words in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in field
    ]
    return f", {' '.join(bounds)}" if bounds else ""
