"""How the answers to one request are read: reasoning first, then tool calls, and the rest is content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, TypeAlias

from .generation import FinishReason
from .reasoning import ThinkParser
from .tool_formats.events import CallArguments, CallStart, Content, Event, ToolParser, joined

CallReason: TypeAlias = Literal["tool_calls", "stop"]

ChatReason: TypeAlias = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class AnswerForm:
    """What an answer may have in it. The functions make a parser for each answer; None where there is nothing to find.

    `one_call`: calls behind the first one are left out. `call_reason` is the `finish_reason` of an answer with calls.
    `short_ids`: the templates of Mistral take ids of nine letters and digits alone, and get them back with the next
    request.
    """

    think_parser: Callable[[], ThinkParser] | None = None
    tool_parser: Callable[[], ToolParser] | None = None
    one_call: bool = False
    call_reason: CallReason = "tool_calls"
    short_ids: bool = False

    @property
    def has_marks(self) -> bool:
        """Whether an answer is read by marks, which may be special tokens."""
        return self.think_parser is not None or self.tool_parser is not None

    def call_id(self, answer: str, choice: int, index: int) -> str:
        """The id of a call: of an answer's id, and where in it the call is."""
        digest = sha256(f"{answer}/{choice}/{index}".encode()).hexdigest()
        return digest[:9] if self.short_ids else f"call_{digest[:24]}"


class AnswerReader:
    """Reads one answer."""

    def __init__(self, form: AnswerForm) -> None:
        self._think = form.think_parser() if form.think_parser else None
        self._tools = form.tool_parser() if form.tool_parser else None
        self._one_call = form.one_call
        self._call_reason: CallReason = form.call_reason
        self._called = False

    def feed(self, text: str) -> list[Event]:
        """What the next part of an answer is, as far as it is known."""
        return self._with_calls(self._think.feed(text) if self._think else [Content(text)])

    def end(self) -> list[Event]:
        """What was held back, now that nothing follows."""
        events = self._with_calls(self._think.end() if self._think else [])
        return self._noted([*events, *self._tools.end()]) if self._tools else events

    def chat_reason(self, reason: FinishReason) -> ChatReason:
        """OpenAI's word for the end of this answer. One that was cut off says so, also in the middle of a call."""
        if reason == "length":
            return "length"
        return self._call_reason if self._called else "stop"

    def _with_calls(self, events: list[Event]) -> list[Event]:
        if self._tools is None:
            return joined(events)
        found: list[Event] = []
        for event in events:
            found += self._tools.feed(event.text) if isinstance(event, Content) else [event]
        return self._noted(found)

    def _noted(self, events: list[Event]) -> list[Event]:
        if self._one_call:
            events = [event for event in events if not isinstance(event, CallStart | CallArguments) or event.index == 0]
        self._called = self._called or any(isinstance(event, CallStart) for event in events)
        return joined(events)
