"""What a guide may be, before any engine sees it: its size, how deep it nests, and where its references lead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import cast
from urllib.parse import unquote

MAX_GUIDE_CHARACTERS = 65_536
"""OpenAI's API takes schemas with 120,000 characters of names and values at most; those that are used have few."""

MAX_GUIDE_DEPTH = 64
"""Brackets within brackets. Parsers call themselves for each: llama.cpp's takes some thousands before it crashes."""

_MOST_REFERENCES = 64
"""From one reference of a schema straight to the next."""

# Quoted text and sets of characters hold brackets that do not nest. They match up to the end where they have none, so
# that a search takes one look at each character.
_QUOTED = r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)'
_SET = r"\[\^?\]?(?:[^\]\\]|\\.)*(?:\]|\\?\Z)"
_JSON = re.compile(rf"{_QUOTED}|[\[{{]|[\]}}]", re.DOTALL)
_GRAMMAR = re.compile(rf"{_QUOTED}|{_SET}|#[^\n]*|[()]", re.DOTALL)
_REGEX = re.compile(rf"\\.|{_SET}|[()]", re.DOTALL)
_BRACKETS = {"json_schema": _JSON, "ebnf_grammar": _GRAMMAR, "regex": _REGEX}

_DATA = ("const", "enum", "default", "examples")
"""Keywords of a schema whose values are no schemas."""


class GuideRefused(ValueError):
    """What is wrong with a guide, as a sentence about it."""


def check_guide(kind: str, guide: str) -> None:
    """Raise GuideRefused for a guide that no engine should see. `kind` is one that needs a guide."""
    if len(guide) > MAX_GUIDE_CHARACTERS:
        raise GuideRefused(f"has {len(guide)} characters; the most is {MAX_GUIDE_CHARACTERS}")
    if _depth(_BRACKETS[kind], guide) > MAX_GUIDE_DEPTH:
        raise GuideRefused(f"nests more than {MAX_GUIDE_DEPTH} brackets")
    if kind == "ebnf_grammar" and guide.lstrip().startswith("%llguidance"):
        raise GuideRefused("is no grammar in GBNF, but one of llguidance")
    if kind == "json_schema":
        _check_schema(guide)


def _depth(brackets: re.Pattern[str], guide: str) -> int:
    depth = deepest = 0
    for match in brackets.finditer(guide):
        if match[0] in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in ")]}":
            depth -= 1
    return deepest


def _check_schema(guide: str) -> None:
    try:
        schema: object = json.loads(guide)
    except ValueError as error:
        raise GuideRefused(f"is no JSON schema: {error}") from error
    if not isinstance(schema, dict):
        raise GuideRefused("is no JSON schema: not an object")
    root = cast(Mapping[str, object], schema)
    for part in _schemas(root):
        _follow(root, part)


def _follow(root: Mapping[str, object], part: object) -> None:
    """Raise GuideRefused where the references that begin at `part` leave the schema, or lead to nothing but others."""
    for _ in range(_MOST_REFERENCES):
        reference = cast(Mapping[str, object], part).get("$ref") if isinstance(part, dict) else None
        if not isinstance(reference, str):
            return
        part = _found(root, reference)
    raise GuideRefused("has a '$ref' that leads from one to the next without an end")


def _found(root: Mapping[str, object], reference: str) -> object:
    if reference != "#" and not reference.startswith("#/"):
        raise GuideRefused(f"has the '$ref' {reference!r:.100}; only parts of the same schema can be meant, as '#/…'")
    part: object = root
    for step in reference.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict) and name in part:
            part = cast(Mapping[str, object], part)[name]
        elif isinstance(part, list) and name.isdecimal() and int(name) < len(cast(list[object], part)):
            part = cast(list[object], part)[int(name)]
        else:
            raise GuideRefused(f"has the '$ref' {reference!r:.100}, and no such part")
    return part


def _schemas(part: object) -> Iterator[object]:
    """Every part of a schema that may be one itself. Its depth is known to be small."""
    if isinstance(part, dict):
        yield part
        for name, value in cast(Mapping[str, object], part).items():
            if name not in _DATA:
                yield from _schemas(value)
    elif isinstance(part, list):
        for value in cast(list[object], part):
            yield from _schemas(value)
