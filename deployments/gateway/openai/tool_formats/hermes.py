"""Hermes 2 and 3, Qwen 2.5 and 3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one after the other.

The closing tag may be missing, and several objects may lie in one pair of tags.
"""

from __future__ import annotations

from collections.abc import Collection

from .call_object import CallObject
from .output import Grammar, GrammarParser, NoCall, Output, calls, literal, past_space

_MARKER = "<tool_call>"
_CLOSING = "</tool_call>"


def hermes(names: Collection[str]) -> GrammarParser:
    """A parser for the tools of these names."""

    def bare(output: Output) -> Grammar:
        if (yield from past_space(output)) != "{":
            raise NoCall
        yield from CallObject(output, names).read()

    def marked(output: Output) -> Grammar:
        if (yield from past_space(output)) != "{":
            raise NoCall
        character = "{"
        while character == "{":
            yield from CallObject(output, None).read()
            character = yield from past_space(output)
        if character != _CLOSING[0]:
            raise NoCall
        yield from literal(output, _CLOSING[1:])
        output.held = ""

    return GrammarParser(
        lambda output: calls(output, lambda: bare(output), (_MARKER,), lambda _: marked(output)), closing=_CLOSING
    )
