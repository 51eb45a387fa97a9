"""Qwen3-Coder: calls in tags, with one parameter after the other.

    <tool_call>
    <function=NAME>
    <parameter=NAME>
    VALUE
    </parameter>
    </function>
    </tool_call>

Models leave `<tool_call>` out now and then. A value is text without quotes, so the tool's schema says what it is: text
is passed on as it comes, anything else once it is whole. A value ends at `</parameter>` where another tag follows,
so that the closing tag can be part of it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import cast

from .output import MOST_HELD, Grammar, GrammarParser, NoCall, Output, calls, literal, past_space

_MARKER = "<tool_call>"
_FUNCTION = "<function="
_PARAMETER = "<parameter="
_VALUE_END = "</parameter>"
_FUNCTION_END = "</function>"
_CLOSING = "</tool_call>"
_BEHIND_VALUE = (_PARAMETER, _FUNCTION_END, _CLOSING)
_LONGEST_NAME = 256
_LONGEST_END = 128
"""From the end of a value to that of the next tag, white space and all."""

Schemas = Mapping[str, Mapping[str, object]]


def qwen3_coder(schemas: Schemas) -> GrammarParser:
    """A parser for tools with these schemas of arguments, by their names."""

    def bare(output: Output) -> Grammar:
        if (yield from past_space(output)) != "<":
            raise NoCall
        yield from literal(output, _FUNCTION[1:])
        yield from _function(output, schemas, any_name=False)

    def marked(output: Output, marker: str) -> Grammar:
        if marker == _MARKER:
            if (yield from past_space(output)) != "<":
                raise NoCall
            yield from literal(output, _FUNCTION[1:])
        yield from _function(output, schemas, any_name=marker == _MARKER)

    return GrammarParser(
        lambda output: calls(output, lambda: bare(output), (_MARKER, _FUNCTION), lambda marker: marked(output, marker)),
        closing=_CLOSING,
    )


def _function(output: Output, schemas: Schemas, *, any_name: bool) -> Grammar:
    """From behind `<function=` to the last closing tag."""
    name = yield from _name(output)
    if not (any_name or name in schemas):
        raise NoCall
    index = output.start(name)
    output.arguments(index, "{")
    between = ""
    tag = yield from _tag(output)
    while tag == _PARAMETER:
        key = yield from _name(output)
        output.held = ""
        output.arguments(index, f"{between}{json.dumps(key, ensure_ascii=False)}: ")
        tag = yield from _value(output, index, _types(schemas.get(name, {}), key))
        between = ", "
        if tag == _CLOSING:
            break
        output.held = ""
    output.arguments(index, "}")
    if tag == _FUNCTION_END:
        output.held = ""
        if (yield from past_space(output)) != _CLOSING[0]:
            raise NoCall
        yield from literal(output, _CLOSING[1:])
    output.held = ""


def _name(output: Output) -> Generator[None, str, str]:
    name = ""
    while True:
        character = yield
        output.hold(character)
        if character == ">":
            return name
        name += character
        if len(name) > _LONGEST_NAME or character in "<\n":
            raise NoCall


def _tag(output: Output) -> Generator[None, str, str]:
    """One of the tags that may come next."""
    seen = ""
    while seen not in _BEHIND_VALUE:
        character = yield
        output.hold(character)
        if seen or not character.isspace():
            seen += character
        if not any(tag.startswith(seen) for tag in _BEHIND_VALUE):
            raise NoCall
    return seen


def _value(output: Output, index: int, types: frozenset[str]) -> Generator[None, str, str]:
    """Passes a value on as JSON. Returns the tag behind it."""
    is_text = "string" in types and "null" not in types
    if is_text:
        output.arguments(index, '"')
    whole: list[str] = []
    # The line break behind the opening tag is not part of the value.
    end = yield
    end = "" if end == "\n" else end
    while True:
        taken = _before_end(end)
        if is_text:
            output.arguments(index, json.dumps(end[:taken], ensure_ascii=False)[1:-1])
        else:
            whole += end[:taken]
        end = end[taken:]
        behind = end.removeprefix("\n").removeprefix(_VALUE_END).lstrip()
        if behind in _BEHIND_VALUE:
            break
        if len(whole) > MOST_HELD:
            raise NoCall("".join(whole) + end)
        character = yield
        end += character
    output.arguments(index, '"' if is_text else _as_json("".join(whole), types))
    return behind


def _before_end(text: str) -> int:
    """How many characters of a text are part of the value for certain: the rest may be its end."""
    for start in range(max(len(text) - _LONGEST_END, 0), len(text)):
        end = text[start:].removeprefix("\n")
        if not end or _VALUE_END.startswith(end):
            return start
        if end.startswith(_VALUE_END):
            behind = end.removeprefix(_VALUE_END).lstrip()
            if any(tag.startswith(behind) for tag in _BEHIND_VALUE):
                return start
    return len(text)


def _types(schema: Mapping[str, object], key: str) -> frozenset[str]:
    """The JSON types that a parameter may have. None are known of a reference, and of what no schema names."""
    properties = schema.get("properties")
    found = cast(Mapping[str, object], properties).get(key) if isinstance(properties, Mapping) else None
    return frozenset(_named_types(found))


def _named_types(schema: object) -> set[str]:
    if not isinstance(schema, Mapping):
        return set()
    keywords = cast(Mapping[str, object], schema)
    named = keywords.get("type")
    names = {named} if isinstance(named, str) else set[str]()
    if isinstance(named, list):
        names.update(each for each in cast(list[object], named) if isinstance(each, str))
    for keyword in ("anyOf", "oneOf"):
        members = keywords.get(keyword)
        if isinstance(members, list):
            names = names.union(*map(_named_types, cast(list[object], members)))
    return names


def _as_json(text: str, types: frozenset[str]) -> str:
    """The JSON of a value. What is not of the types that the schema names is text, as the model wrote it."""
    spelled = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text.strip())
    try:
        value: object = json.loads(spelled, parse_constant=_no_number)
    except (ValueError, RecursionError):
        value = text
    if _type_of(value) & (types or {"object", "array"}):
        return spelled
    return json.dumps(text, ensure_ascii=False)


def _no_number(text: str) -> float:
    """Python's parser knows NaN and Infinity, JSON does not."""
    raise ValueError(text)


def _type_of(value: object) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case None:
            return {"null"}
        case dict():
            return {"object"}
        case list():
            return {"array"}
        case _:
            return set()
