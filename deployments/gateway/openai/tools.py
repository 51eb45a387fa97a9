"""The tools that a model may call, and the schemas that make it call one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias, cast

from pydantic import Field

from .bodies import Body, Document
from .errors import invalid

MOST_TOOLS = 128
"""OpenAI's limit."""

ToolName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""OpenAI's rule."""


class _Definition(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = Field(default=None, exclude=True)


class Tool(Body):
    type: Literal["function"]
    function: _Definition


class _Named(Body):
    name: ToolName


class NamedChoice(Body):
    type: Literal["function"]
    function: _Named


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedChoice
Schemas: TypeAlias = Mapping[str, Document]
"""By the name of a tool, the schema of its arguments."""


def schemas_of(tools: Sequence[Tool]) -> Schemas:
    """The tools by their names. Raises ApiError where two have one name."""
    schemas: dict[str, Document] = {}
    for position, tool in enumerate(tools):
        if tool.function.name in schemas:
            raise invalid(f"two tools have the name '{tool.function.name}'", f"tools[{position}].function.name")
        schemas[tool.function.name] = tool.function.parameters or {"type": "object", "properties": {}}
    return schemas


def contract_tools(tools: Sequence[Tool]) -> str:
    """The contract's `tools`, as templates know them. `strict` says nothing to a model."""
    return json.dumps([tool.model_dump(exclude_none=True) for tool in tools], ensure_ascii=False)


def forced_call(schemas: Schemas, arguments: str) -> str:
    """A JSON schema of one call of any of the tools: `{"name": …, ARGUMENTS: {…}}`.

    `arguments` is the key that the model's own format has, so that the guide leads it where it goes anyway. References
    of a schema begin at the root, so a schema that has some goes to `$defs` with its references moved along.
    """
    calls: list[Document] = []
    moved: dict[str, Document] = {}
    for name, schema in schemas.items():
        inner: Document = schema
        if _has_references(schema):
            moved[name] = cast(Document, _moved(schema, f"#/$defs/{name}"))
            inner = {"$ref": f"#/$defs/{name}"}
        properties: Document = {"name": {"type": "string", "enum": [name]}, arguments: inner}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", arguments],
                "additionalProperties": False,
            }
        )
    root = dict(calls[0]) if len(calls) == 1 else {"anyOf": calls}
    return json.dumps(root | {"$defs": moved} if moved else root, ensure_ascii=False)


_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are no schemas."""

_NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose values are schemas by names, which are no keywords."""


def _has_references(part: object) -> bool:
    return part != _moved(part, "#/moved")


def _moved(part: object, root: str) -> object:
    """A part of a schema, with `root` before each reference. The depth of a body is bounded."""
    if isinstance(part, list):
        return [_moved(each, root) for each in cast(list[object], part)]
    if not isinstance(part, dict):
        return part
    moved: dict[str, object] = {}
    for keyword, value in cast(Document, part).items():
        if keyword == "$ref" and isinstance(value, str) and value.startswith("#"):
            moved[keyword] = root + value[1:]
        elif keyword in _NAMES and isinstance(value, dict):
            moved[keyword] = {name: _moved(each, root) for name, each in cast(Document, value).items()}
        else:
            moved[keyword] = value if keyword in _DATA else _moved(value, root)
    return moved
