"""Messages of a chat as the templates of models know them, where these are rendered as Hugging Face has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from .contract import Json


def for_template(messages: Sequence[Json]) -> list[Json]:
    """The messages, the arguments of calls as objects.

    OpenAI's clients send them as the text of an object, which a template would quote once more. A text that is none is
    left: it is what the model itself has written.
    """
    return [_with_objects(message) for message in messages]


def in_parts(messages: Sequence[Json]) -> list[Json]:
    """The messages, the content of each as a list of one part: templates of models that also see may take no other."""
    return [
        {**message, "content": [{"type": "text", "text": text}]}
        if isinstance(text := message.get("content"), str)
        else message
        for message in messages
    ]


def _with_objects(message: Json) -> Json:
    calls: object = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in cast(list[object], calls)]}


def _with_object(call: object) -> object:
    function = cast(Json, call).get("function") if isinstance(call, dict) else None
    arguments = cast(Json, function).get("arguments") if isinstance(function, dict) else None
    if not isinstance(arguments, str) or (found := _object(arguments)) is None:
        return cast(object, call)
    return {**cast(Json, call), "function": {**cast(Json, function), "arguments": found}}


def _object(text: str) -> Json | None:
    try:
        found: object = json.loads(text)
    except ValueError:
        return None
    return cast(Json, found) if isinstance(found, dict) else None
