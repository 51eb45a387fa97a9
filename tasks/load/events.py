"""Server-sent events of an answer, as JSON objects with the moment at which each came.

Source: "Server-sent events" of the HTML standard. Neither server sends an event of several lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import cast

from tasks.load.outcome import RequestFailed

Fields = Mapping[str, object]
Event = Callable[[Fields, float], None]

_LARGEST_LINE = 4 << 20


class Events:
    """Takes bytes and hands over events. `done` is whether the stream said that it has ended, by `[DONE]`."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self._rest = b""
        self.done = False

    def feed(self, data: bytes, moment: float) -> None:
        """Raises RequestFailed, kind `malformed`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LARGEST_LINE:
            raise RequestFailed("malformed", "a line of the stream has no end")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[len(b"data:") :].strip(), moment)

    def _take(self, data: bytes, moment: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError):
            raise RequestFailed("malformed", f"an event is no JSON: {data[:100]!r}") from None
        if not isinstance(fields, dict):
            raise RequestFailed("malformed", "an event is no JSON object")
        self._event(cast("Fields", fields), moment)
