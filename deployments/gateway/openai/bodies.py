"""Request bodies: parsed within limits, and refused by the name of the field that is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeAlias, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tasks.serving.guides import MAX_GUIDE_DEPTH

from .errors import ApiError, invalid

MOST_LEVELS = MAX_GUIDE_DEPTH + 8
"""Of a body: a schema lies five levels deep in `response_format`, and in a tool."""

MOST_VALUES = 200_000
"""Of a body, names included. A conversation has some tens, 128 tools with large schemas some ten thousand."""

Document: TypeAlias = Mapping[str, object]
Neutral: TypeAlias = type | tuple[object, ...]
"""What a field may be that is not honoured: any value of a type, since it never changes an answer, or some values."""


class Body(BaseModel):
    """A part of a request. Types are exact, as in JSON: `"5"` and `true` are no numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_body(body: bytes) -> Document:
    """The JSON object in `body`. Raises ApiError: not JSON, no object, nested too deep, too many values, half
    surrogate pairs, numbers without an end."""
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}", None) from error
    if not isinstance(document, dict):
        raise invalid("the body is not a JSON object", None)
    _check_size(cast(object, document))
    return cast(Document, document)


def _check_size(document: object) -> None:
    """Walks level by level, without recursion."""
    level, depth, values = [document], 0, 0
    while level:
        depth, values = depth + 1, values + len(level)
        if depth > MOST_LEVELS:
            raise invalid(f"the body is nested more than {MOST_LEVELS} deep", None)
        if values > MOST_VALUES:
            raise invalid(f"the body has more than {MOST_VALUES} values", None)
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += cast(Mapping[str, object], value).keys()
                below += cast(Mapping[str, object], value).values()
            elif isinstance(value, list):
                below += cast(list[object], value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise invalid("the body has a number that is infinite, or none at all", None)
            elif isinstance(value, str) and not _is_text(value):
                raise invalid("the body has a text with half of a surrogate pair", None)
        level = below


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_neutral(document: Document, neutral: Mapping[str, Neutral]) -> dict[str, object]:
    """The fields that are to be honoured. null is neutral for all of `neutral`. Raises ApiError for another value."""
    for name, value in document.items():
        if name in neutral and value is not None and not _is_neutral(value, neutral[name]):
            raise invalid(f"'{name}' cannot be honoured with this value; {_wanted(neutral[name])}", name)
    return {name: value for name, value in document.items() if name not in neutral}


def _is_neutral(value: object, neutral: Neutral) -> bool:
    if isinstance(neutral, type):
        return isinstance(value, neutral)
    return any(type(value) is type(each) and value == each for each in neutral)


def _wanted(neutral: Neutral) -> str:
    if isinstance(neutral, type):
        return {str: "it is a text", dict: "it is an object", list: "it is a list"}[neutral]
    return f"leave it out, or send {' or '.join(json.dumps(each) for each in neutral) or 'null'}"


def moved_up(document: Document, nested: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """The body with the fields of each object of `nested` beside the others, under the names that are given there.

    Raises ApiError for a field that is not there, and for one that comes twice.
    """
    fields = dict(document)
    for name, names in nested.items():
        inner = fields.pop(name, None)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise invalid(f"'{name}' is not an object", name)
        for inner_name, value in cast(Document, inner).items():
            if inner_name not in names:
                raise invalid(
                    f"'{inner_name:.64}' is not a field that is known here; {name} can have {', '.join(names)}",
                    f"{name}.{inner_name:.64}",
                )
            if fields.get(names[inner_name]) is not None:
                raise invalid(f"'{names[inner_name]}' comes twice, here and beside it", f"{name}.{inner_name}")
            fields[names[inner_name]] = value
    return fields


def validated(kind: type[AnyBody], fields: Document) -> AnyBody:
    """The fields as a `kind`. Raises ApiError, which names the field that is wrong."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error, fields) from error


def _refusal(error: ValidationError, fields: Document) -> ApiError:
    """A value that fits no member of a union has an error for each. The one that lies deepest tells most, and of
    those one that is not about the type: that member was meant."""
    found = [
        (_path(detail, fields), detail["type"], detail["msg"].removeprefix("Value error, "))
        for detail in error.errors(include_url=False, include_input=False)
    ]
    path, kind, message = max(found, key=lambda each: (len(each[0]), not each[1].endswith("_type")))
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step:.64}" for step in path).removeprefix(".")
    if kind == "extra_forbidden":
        return invalid(f"'{param}' is not a field that is known here", param)
    return invalid(f"'{param}': {message:.500}", param)


def _path(detail: ErrorDetails, fields: Document) -> list[str | int]:
    """Where in the body an error is. pydantic's location also names members of unions, which no client knows."""
    location = detail["loc"]
    path: list[str | int] = []
    here: object = fields
    for position, step in enumerate(location):
        if isinstance(here, dict) and step in here:
            here = cast(Document, here)[cast(str, step)]
        elif isinstance(here, list) and isinstance(step, int):
            here = cast(list[object], here)[step]
        elif detail["type"] != "missing" or position < len(location) - 1:
            continue
        path.append(step)
    if detail["type"].startswith("union_tag"):
        path.append(str(detail.get("ctx", {})["discriminator"]).strip("'"))
    return path
