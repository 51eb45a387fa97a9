"""OpenAI's chats and completions over server-sent events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal, cast

from tasks.load.events import Events, Fields
from tasks.load.http_stream import Connections
from tasks.load.outcome import Hearing, RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.wire import Call, Sampling

Endpoint = Literal["chat/completions", "completions"]


class OpenAi:
    """`/v1/chat/completions` or `/v1/completions` of the gateway, or of any other server that has them."""

    def __init__(self, model: str, endpoint: Endpoint, connections: Connections, sampling: Sampling) -> None:
        self._model = model
        self._endpoint: Endpoint = endpoint
        self._connections = connections
        self._sampling = sampling

    async def open(self) -> None:
        """Every model takes the same fields."""

    def prepare(self, prompt: Prompt) -> Call:
        body = json.dumps(self._fields(prompt)).encode()

        async def call(hearing: Hearing) -> None:
            events = Events(lambda fields, moment: _hear(hearing, fields, moment))
            await self._connections.ask("POST", f"/v1/{self._endpoint}", body, events.feed)
            if not events.done:
                raise RequestFailed("broken", "the stream ended without [DONE]")

        return call

    def _fields(self, prompt: Prompt) -> dict[str, object]:
        fields: dict[str, object] = {
            "model": self._model,
            "max_tokens": prompt.output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._endpoint == "completions":
            fields["prompt"] = prompt.text
        else:
            fields["messages"] = [{"role": "user", "content": prompt.text}]
        if self._sampling.exact_lengths:
            fields["min_tokens"] = prompt.output_tokens
        if self._sampling.temperature is not None:
            fields["temperature"] = self._sampling.temperature
        if self._sampling.seed is not None:
            fields["seed"] = self._sampling.seed
        return fields

    async def close(self) -> None:
        self._connections.close()


def _hear(hearing: Hearing, fields: Fields, moment: float) -> None:
    if (error := fields.get("error")) is not None:
        raise RequestFailed("failed", str(error))
    choices = fields.get("choices")
    if isinstance(choices, list) and choices and _has_text(cast("Sequence[object]", choices)[0]):
        hearing.text(moment)
    if isinstance(usage := fields.get("usage"), dict):
        counted = cast("Fields", usage)
        if isinstance(tokens := counted.get("completion_tokens"), int):
            hearing.output_tokens = tokens
        if isinstance(tokens := counted.get("prompt_tokens"), int):
            hearing.input_tokens = tokens


def _has_text(choice: object) -> bool:
    """Whether a chunk has something of the answer: the first chunk of a chat tells the role alone."""
    if not isinstance(choice, dict):
        raise RequestFailed("malformed", "a choice is no JSON object")
    fields = cast("Fields", choice)
    delta = fields.get("delta")
    if not isinstance(delta, dict):
        return bool(fields.get("text"))
    told = cast("Fields", delta)
    return any(told.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
