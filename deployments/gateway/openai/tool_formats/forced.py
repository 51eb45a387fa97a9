"""Answers that a guide makes calls of: in one form, whatever the format of the model is."""

from __future__ import annotations

from collections.abc import Collection

from .call_object import CallObject
from .events import CallArguments, CallStart, Event
from .output import Grammar, GrammarParser, NoCall, Output, attempt, past_space


def required(names: Collection[str]) -> GrammarParser:
    """A parser of one object of a call, as the guide for any of these tools has it."""

    def call(output: Output) -> Grammar:
        if (yield from past_space(output)) != "{":
            raise NoCall
        yield from CallObject(output, names).read()

    def grammar(output: Output) -> Grammar:
        yield from attempt(output, call(output))
        while True:
            output.release(len(output.held))
            output.held = yield

    return GrammarParser(grammar)


class NamedCall:
    """The guide is the schema of the arguments, so the whole answer is arguments of this tool."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> list[Event]:
        if not text:
            return []
        begun, self._begun = self._begun, True
        return [CallArguments(0, text)] if begun else [CallStart(0, self._name), CallArguments(0, text)]

    def end(self) -> list[Event]:
        return []
