"""Reasoning apart from content, for answers that begin with `<think>…</think>`.

An answer to a template that ends with the tag begins with it too: the serving contract sees to that. White space
around the tags is the format's. Reasoning that is never closed is reasoning to the end.
"""

from __future__ import annotations

from typing import Literal

from .tool_formats.events import Content, Event, Reasoning

_OPENING = "<think>"
_CLOSING = "</think>"
_MOST_SPACE = 64


class ThinkParser:
    """Splits one answer."""

    def __init__(self) -> None:
        self._part: Literal["beginning", "opened", "reasoning", "closed", "content"] = "beginning"
        self._held = ""

    def feed(self, text: str) -> list[Event]:
        """What is known of the text so far. A tag and white space are held until it is known what they are."""
        self._held += text
        events: list[Event] = []
        if self._part == "beginning":
            self._begin()
        if self._part == "opened":
            self._skip_space("reasoning")
        if self._part == "reasoning":
            self._reason(events)
        if self._part == "closed":
            self._skip_space("content")
        if self._part == "content" and self._held:
            events.append(Content(self._held))
            self._held = ""
        return events

    def end(self) -> list[Event]:
        """What is held, now that nothing follows."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [Reasoning(held) if self._part == "reasoning" else Content(held)]

    def _begin(self) -> None:
        text = self._held.lstrip()
        if len(self._held) - len(text) <= _MOST_SPACE:
            if text.startswith(_OPENING):
                self._part, self._held = "opened", text.removeprefix(_OPENING)
                return
            if _OPENING.startswith(text):
                return
        self._part = "content"

    def _skip_space(self, then: Literal["reasoning", "content"]) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._part = then

    def _reason(self, events: list[Event]) -> None:
        text, closing, after = self._held.partition(_CLOSING)
        begun = 0 if closing else max(size for size in range(len(_CLOSING)) if text.endswith(_CLOSING[:size]))
        tag = len(text) - begun
        # White space before the tag is the format's, but no more of it than could be held.
        known = max(len(text[:tag].rstrip()), tag - _MOST_SPACE)
        if known:
            events.append(Reasoning(text[:known]))
        if closing:
            self._part, self._held = "closed", after
        else:
            self._held = text[known:]
