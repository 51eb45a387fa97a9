"""Triton's generate extension over server-sent events."""

from __future__ import annotations

import json
from urllib.parse import quote

from tasks.load.events import Events, Fields
from tasks.load.http_stream import Connections
from tasks.load.outcome import FailureKind, Hearing, RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.wire import Call, Sampling
from tasks.serving.failures import FailureCode, without_code
from tasks.serving.figures import UNCOUNTED

COUNTS = ("return_num_input_tokens", "return_num_output_tokens")
"""Inputs by which an answer says how many tokens there were. Models of the first contract lack them."""


def inputs_of(prompt: Prompt, sampling: Sampling, *, counts: bool) -> dict[str, str | int | float | bool]:
    """The contract's inputs of a request, by name."""
    given: dict[str, str | int | float | bool] = {
        "text_input": prompt.text,
        "max_tokens": prompt.output_tokens,
        "stream": True,
    }
    if sampling.exact_lengths:
        given["min_tokens"] = prompt.output_tokens
    if sampling.temperature is not None:
        given["temperature"] = sampling.temperature
    if sampling.seed is not None:
        given["seed"] = sampling.seed
    return given | dict.fromkeys(COUNTS if counts else (), True)


class TritonSse:
    """`/v2/models/NAME/generate_stream` of a node's Triton, or of the gateway."""

    def __init__(self, model: str, connections: Connections, sampling: Sampling) -> None:
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._connections = connections
        self._sampling = sampling
        self._counts = False

    async def open(self) -> None:
        body = bytearray()
        await self._connections.ask("GET", self._path, b"", lambda data, _: body.extend(data))
        try:
            known = {str(each["name"]) for each in json.loads(body)["inputs"]}
        except (ValueError, KeyError, TypeError):
            raise RequestFailed("malformed", "this is no metadata of a model") from None
        self._counts = known.issuperset(COUNTS)

    def prepare(self, prompt: Prompt) -> Call:
        # Releases of the first contract refuse an id, and count all the same.
        unnamed = not (self._sampling.uncounted and self._counts)
        given = inputs_of(prompt, self._sampling, counts=self._counts)
        body = json.dumps(given if unnamed else {**given, "id": UNCOUNTED}).encode()

        async def call(hearing: Hearing) -> None:
            events = Events(lambda fields, moment: _hear(hearing, fields, moment))
            await self._connections.ask("POST", f"{self._path}/generate_stream", body, events.feed)

        return call

    async def close(self) -> None:
        self._connections.close()


def _hear(hearing: Hearing, fields: Fields, moment: float) -> None:
    if "error" in fields:
        raise stream_failure(str(fields["error"]))
    if fields.get("text_output"):
        hearing.text(moment)
    if isinstance(tokens := fields.get("num_output_tokens"), int):
        hearing.count(tokens)
    if isinstance(tokens := fields.get("num_input_tokens"), int):
        hearing.input_tokens = tokens


_KINDS: dict[FailureCode | None, FailureKind] = {
    "invalid": "refused", "context-length": "refused", "unavailable": "unavailable", "deadline": "deadline",
}  # fmt: skip


def stream_failure(message: str) -> RequestFailed:
    """What Triton says in the midst of a stream. From contract 2 on, a code at its end says what it is."""
    _, code = without_code(message)
    return RequestFailed(_KINDS.get(code, "failed"), message)
