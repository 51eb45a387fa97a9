"""Reading an answer whole and in parts, for the tests of every format."""

from __future__ import annotations

import random
from collections.abc import Callable

from deployments.gateway.openai.tool_formats.events import CallArguments, CallStart, Content, Event, ToolParser, joined

Calls = list[tuple[str, str]]


def read_in_parts(parser: ToolParser, parts: list[str]) -> list[Event]:
    events: list[Event] = []
    for part in parts:
        events += parser.feed(part)
    return joined([*events, *parser.end()])


def split_at_random(text: str, seed: int) -> list[str]:
    places = random.Random(seed)
    parts: list[str] = []
    while text:
        length = places.choice((1, 1, 2, 3, 5, 8, 40))
        parts.append(text[:length])
        text = text[length:]
    return parts


def read(new_parser: Callable[[], ToolParser], text: str) -> tuple[str, Calls]:
    """Content and calls of an answer, which reads the same however it is split."""
    whole = read_in_parts(new_parser(), [text])
    assert read_in_parts(new_parser(), list(text)) == whole
    for seed in range(20):
        assert read_in_parts(new_parser(), split_at_random(text, seed)) == whole, f"seed {seed}"
    calls: Calls = []
    for event in whole:
        match event:
            case CallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallArguments(index, arguments):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + arguments)
            case _:
                pass
    return "".join(event.text for event in whole if isinstance(event, Content)), calls
