"""The messages of a chat: text alone, in OpenAI's form, which is that of the serving contract too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator

from .bodies import Body

MOST_MESSAGES = 2048
MOST_PARTS = 256
MOST_CALLS = 128
"""Of one message. OpenAI's API has as many tools."""


class _TextPart(Body):
    type: Literal["text"]
    text: str


_Content: TypeAlias = str | Annotated[list[_TextPart], Field(min_length=1, max_length=MOST_PARTS)]
_Name: TypeAlias = Annotated[str, Field(max_length=64)]


class _Instruction(Body):
    role: Literal["system", "developer"]
    content: _Content
    name: _Name | None = None


class _User(Body):
    role: Literal["user"]
    content: _Content
    name: _Name | None = None


class _Function(Body):
    name: str = Field(min_length=1, max_length=64)
    arguments: str


class _Call(Body):
    id: str = Field(max_length=128)
    type: Literal["function"]
    function: _Function
    # Clients that put a stream together themselves send the index of each call back.
    index: int | None = Field(default=None, exclude=True)


class _Assistant(Body):
    """An earlier answer. Clients send back what they got, with the fields that were null or empty in it."""

    role: Literal["assistant"]
    content: _Content | None = None
    name: _Name | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[_Call], Field(max_length=MOST_CALLS)] | None = None
    refusal: None = Field(default=None, exclude=True)
    audio: None = Field(default=None, exclude=True)
    function_call: None = Field(default=None, exclude=True)
    annotations: Annotated[list[object], Field(max_length=0)] | None = Field(default=None, exclude=True)

    @field_validator("tool_calls")
    @classmethod
    def _none_is_no_list(cls, calls: list[_Call] | None) -> list[_Call] | None:
        return calls or None


class _Tool(Body):
    role: Literal["tool"]
    content: _Content
    tool_call_id: str = Field(max_length=128)
    name: _Name | None = None


Message: TypeAlias = Annotated[_Instruction | _User | _Assistant | _Tool, Field(discriminator="role")]


def contract_messages(messages: Sequence[Message]) -> str:
    """The contract's `messages`. Fields that were not sent, or are null, are left out."""
    return json.dumps([message.model_dump(exclude_none=True) for message in messages], ensure_ascii=False)
