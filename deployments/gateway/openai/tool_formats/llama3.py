"""Llama 3.1, 3.2 and 3.3: `<|python_tag|>{"name": …, "parameters": {…}}`, several with `;` between them.

Most answers come without the tag: the models leave it out for tools of their user's, and it is a special token.
The tag before anything else, such as the Python code of built-in tools, is text.
"""

from __future__ import annotations

from collections.abc import Collection

from .call_object import CallObject
from .output import Grammar, GrammarParser, NoCall, Output, calls, literal, past_space

_MARKER = "<|python_tag|>"
_BETWEEN = ";"


def llama3(names: Collection[str]) -> GrammarParser:
    """A parser for the tools of these names."""

    def bare(output: Output) -> Grammar:
        character = yield from past_space(output)
        if character == _BETWEEN and output.behind_call:
            character = yield from past_space(output)
            if character == _MARKER[0]:
                yield from literal(output, _MARKER[1:])
                yield from marked(output)
                return
        yield from _call(output, character, names)

    def marked(output: Output) -> Grammar:
        yield from _call(output, (yield from past_space(output)), None)

    return GrammarParser(
        lambda output: calls(output, lambda: bare(output), (_MARKER,), lambda _: marked(output)), closing=_BETWEEN
    )


def _call(output: Output, character: str, names: Collection[str] | None) -> Grammar:
    if character != "{":
        raise NoCall
    yield from CallObject(output, names).read()
