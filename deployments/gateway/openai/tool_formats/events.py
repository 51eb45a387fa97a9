"""What reading an answer gives: text, reasoning, and tool calls in parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class Reasoning:
    text: str


@dataclass(frozen=True)
class CallStart:
    """Call number `index` of this answer begins."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next characters of the JSON text of its arguments."""

    index: int
    text: str


Event: TypeAlias = Content | Reasoning | CallStart | CallArguments


class ToolParser(Protocol):
    """Reads one answer."""

    def feed(self, text: str) -> list[Event]:
        """What the next part of the answer is, as far as it is known."""
        ...

    def end(self) -> list[Event]:
        """What was held back, now that nothing follows."""
        ...


def joined(events: Iterable[Event]) -> list[Event]:
    """The same events, those that continue each other as one, and none that is empty."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        match last, event:
            case (Content(before), Content(text)):
                result[-1] = Content(before + text)
            case (Reasoning(before), Reasoning(text)):
                result[-1] = Reasoning(before + text)
            case (CallArguments(index, before), CallArguments(same, text)) if index == same:
                result[-1] = CallArguments(index, before + text)
            case (_, Content("") | Reasoning("") | CallArguments(text="")):
                pass
            case _:
                result.append(event)
    return result
