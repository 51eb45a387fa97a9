"""Mistral, before and since its eleventh tokenizer.

    [TOOL_CALLS] [{"name": …, "arguments": {…}}, …]
    [TOOL_CALLS]NAME{…}[TOOL_CALLS]NAME{…}
    [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…}

The marks are special tokens, so they may be missing: `[{…}]` and `NAME{…}` are read without them. Where `[CALL_ID]`
is missing and its ID is not, nothing tells the name and the ID apart, and the answer is text.
"""

from __future__ import annotations

from collections.abc import Collection, Generator

from .call_object import CallObject, nested
from .output import Grammar, GrammarParser, NoCall, Output, calls, literal, past_space

_MARKER = "[TOOL_CALLS]"
_LONGEST_NAME = 64


def mistral(names: Collection[str]) -> GrammarParser:
    """A parser for the tools of these names."""
    return GrammarParser(
        lambda output: calls(output, lambda: _calls(output, names), (_MARKER,), lambda _: _calls(output, None))
    )


def _calls(output: Output, names: Collection[str] | None) -> Grammar:
    character = yield from past_space(output)
    if character == "[":
        yield from _list(output, names)
    elif character == "{" and names is None:
        yield from CallObject(output, names).read()
    else:
        yield from _named(output, character, names)


def _list(output: Output, names: Collection[str] | None) -> Grammar:
    character = ","
    while character == ",":
        if (yield from past_space(output)) != "{":
            raise NoCall
        yield from CallObject(output, names).read()
        character = yield from past_space(output)
    if character != "]":
        raise NoCall
    output.held = ""


def _named(output: Output, character: str, names: Collection[str] | None) -> Grammar:
    name = ""
    while character.isalnum() or character in "_-":
        name += character
        if len(name) > _LONGEST_NAME or (names is not None and not any(known.startswith(name) for known in names)):
            raise NoCall
        character = yield from _held(output)
    if not name or (names is not None and name not in names):
        raise NoCall
    if character == "[":
        yield from _marks(output)
        character = yield from past_space(output)
    elif character.isspace() and names is None:
        character = yield from past_space(output)
    if character != "{":
        raise NoCall
    index = output.start(name)
    output.arguments(index, character)
    yield from nested(output, lambda text: output.arguments(index, text), character, hold=False)


def _marks(output: Output) -> Grammar:
    """From behind the bracket of the first mark behind a name, to that before its arguments."""
    if (yield from _held(output)) == "C":
        yield from literal(output, "ALL_ID]")
        while (yield from _held(output)) != "[":
            if not output.held[-1].isalnum():
                raise NoCall
        yield from literal(output, "ARGS]")
    elif output.held[-1] == "A":
        yield from literal(output, "RGS]")
    else:
        raise NoCall


def _held(output: Output) -> Generator[None, str, str]:
    output.hold((yield))
    return output.held[-1]
