"""What an answer must look like: `response_format`, and the extension fields of vLLM and NIM that guide it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from tasks.serving.guides import GuideRefused, check_guide

from .bodies import Body
from .errors import invalid
from .generation import GuideType

MOST_CHOICES = 256


class _Text(Body):
    type: Literal["text"]


class _JsonObject(Body):
    type: Literal["json_object"]


class _NamedSchema(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    # A guide is followed to the letter, strict or not.
    strict: bool | None = None
    # `schema` is a method of pydantic's base.
    schema_: dict[str, object] = Field(alias="schema")


class _JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: _NamedSchema


ResponseFormat: TypeAlias = Annotated[_Text | _JsonObject | _JsonSchema, Field(discriminator="type")]


@dataclass(frozen=True)
class Guide:
    """A guide of the contract; `param` is the field of the body that it comes from."""

    type: GuideType
    guide: str
    param: str


class Guided(Body):
    """The fields of a request that guide its answer. One of them at most is set."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, object] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)] | None = None


NESTED = {
    "nvext": {
        name: name
        for name in ("guided_json", "guided_regex", "guided_grammar", "guided_choice", "top_k", "repetition_penalty")
    },
    "structured_outputs": {
        "json": "guided_json",
        "regex": "guided_regex",
        "grammar": "guided_grammar",
        "choice": "guided_choice",
    },
}
"""NIM and later versions of vLLM have these fields in an object of their own."""


def guide_of(fields: Guided) -> Guide | None:
    """The guide of a request. Raises ApiError where there are two, or one that no engine should see."""
    guides = list(_guides(fields))
    if len(guides) > 1:
        raise invalid(f"'{guides[0].param}' and '{guides[1].param}' cannot both guide an answer", guides[1].param)
    if not guides:
        return None
    check(guides[0])
    return guides[0]


def check(guide: Guide) -> None:
    """Raise ApiError for a guide that is too large, nests too deep, or leads elsewhere."""
    if guide.type == "json":
        return
    if not guide.guide:
        raise invalid(f"'{guide.param}' is empty", guide.param)
    try:
        check_guide(guide.type, guide.guide)
    except GuideRefused as error:
        raise invalid(f"'{guide.param}' {error}", guide.param) from error


def _guides(fields: Guided) -> Sequence[Guide]:
    found: list[Guide] = []
    match fields.response_format:
        case _JsonObject():
            found.append(Guide("json", "", "response_format"))
        case _JsonSchema(json_schema=named):
            found.append(Guide("json_schema", _dumped(named.schema_), "response_format.json_schema.schema"))
        case _:
            pass
    if fields.guided_json is not None:
        schema = fields.guided_json
        found.append(Guide("json_schema", schema if isinstance(schema, str) else _dumped(schema), "guided_json"))
    if fields.guided_regex is not None:
        found.append(Guide("regex", fields.guided_regex, "guided_regex"))
    if fields.guided_grammar is not None:
        found.append(Guide("ebnf_grammar", fields.guided_grammar, "guided_grammar"))
    if fields.guided_choice is not None:
        choices = " | ".join(f'"{"".join(map(_escaped, choice))}"' for choice in fields.guided_choice)
        found.append(Guide("ebnf_grammar", f"root ::= {choices}", "guided_choice"))
    return found


def _dumped(schema: dict[str, object]) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _escaped(character: str) -> str:
    """A character as it may stand in a literal of a grammar."""
    return character if character.isalnum() or character == " " else f"\\U{ord(character):08X}"
