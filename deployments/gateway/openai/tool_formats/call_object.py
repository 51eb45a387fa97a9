"""The JSON object of a call: `{"name": …, "arguments": {…}}`, or with "parameters" for "arguments".

Keys come in any order. Arguments that come before the name are held until it is known. Arguments may also be the text
of an object, as OpenAI has them, or null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator

from .output import MOST_HELD, NoCall, Output, Sink

_ARGUMENTS = ("arguments", "parameters")
_WITHOUT_MEANING = ("type", "id")
_DEEPEST = 256


class CallObject:
    """Reads one call. `names` are those that it may have, None where any will do, since a marker says that it is one.

    Raises NoCall from `read`.
    """

    def __init__(self, output: Output, names: Collection[str] | None) -> None:
        self._output = output
        self._names = names
        self._name: str | None = None
        self._index: int | None = None
        self._early = ""

    def read(self) -> Generator[None, str, None]:
        """From behind the `{`, which is held, to the `}`."""
        character = yield from self._past_space()
        while character != "}":
            if character != '"':
                raise NoCall(character)
            key = yield from self._string()
            colon = yield from self._past_space()
            if colon != ":":
                raise NoCall(colon)
            first = yield from self._past_space()
            character = yield from self._member(key, first)
            if character == ",":
                character = yield from self._past_space()
            elif character != "}":
                raise NoCall(character)
        if self._index is None:
            self._begin_late()

    def _member(self, key: str, first: str) -> Generator[None, str, str]:
        """One value, of which `first` is the first character. Returns the first character behind it."""
        if key == "name" and self._name is None:
            if first != '"':
                raise NoCall(first)
            self._name = yield from self._string()
            if not self._name or (self._names is not None and self._name not in self._names):
                raise NoCall
            if self._early:
                self._begin(self._name)
            return (yield from self._past_space())
        if key in _ARGUMENTS and not self._early and self._index is None:
            return (yield from self._arguments(first))
        if self._names is not None and self._index is None and key not in _WITHOUT_MEANING:
            raise NoCall
        return (yield from self._value(first, _nowhere))

    def _arguments(self, first: str) -> Generator[None, str, str]:
        if first == "{" and self._name is not None:
            index = self._index = self._output.start(self._name)
            return (yield from self._value(first, lambda text: self._output.arguments(index, text)))
        parts: list[str] = []
        after = yield from self._value(first, parts.append)
        self._early = _as_object("".join(parts))
        if self._name is not None:
            self._begin(self._name)
        return after

    def _begin_late(self) -> None:
        """At the end: arguments came before the name, or there are none, which only a marker makes a call."""
        if self._name is None or (self._names is not None and not self._early):
            raise NoCall
        self._begin(self._name)

    def _begin(self, name: str) -> None:
        self._index = self._output.start(name)
        self._output.arguments(self._index, self._early or "{}")

    def _value(self, first: str, sink: Sink) -> Generator[None, str, str]:
        """Gives a value to `sink`. Returns the first character behind it."""
        if first == '"':
            sink(json.dumps((yield from self._string())))
            return (yield from self._past_space())
        sink(first)
        if first in "{[":
            yield from nested(self._output, sink, first, hold=self._index is None)
            return (yield from self._past_space())
        if not (first.isalnum() or first == "-"):
            raise NoCall(first)
        while True:
            character = yield from self._next()
            if character.isspace():
                return (yield from self._past_space())
            if character in ",}":
                return character
            sink(character)

    def _string(self) -> Generator[None, str, str]:
        """A string, from behind its quotation mark. Raises NoCall where it is none."""
        raw, escaped, quoted = ['"'], False, True
        while quoted:
            character = yield from self._next()
            raw.append(character)
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
            if len(raw) > MOST_HELD:
                raise NoCall("".join(raw))
        try:
            text = str(json.loads("".join(raw), strict=False))
        except ValueError:
            raise NoCall("".join(raw)) from None
        # Half of a surrogate pair is no text.
        return text.encode(errors="replace").decode()

    def _past_space(self) -> Generator[None, str, str]:
        while (character := (yield from self._next())).isspace():
            pass
        return character

    def _next(self) -> Generator[None, str, str]:
        character = yield
        if self._index is None:
            self._output.hold(character)
        return character


_UP_TO_QUOTE = re.compile(r'["\\]')
_UP_TO_BRACKET = re.compile(r'["{}\[\]]')


def nested(output: Output, sink: Sink, first: str, *, hold: bool) -> Generator[None, str, None]:
    """Gives an object or a list to `sink`, from behind its first bracket to its last, and holds it if it is to.

    It is only as far JSON as its strings and brackets are: what is in it, a model may get wrong. Raises NoCall where
    brackets do not fit, or are too deep.
    """
    closing = ["}" if first == "{" else "]"]
    quoted = escaped = False
    while closing:
        if not (hold or escaped):
            output.passing = (_UP_TO_QUOTE if quoted else _UP_TO_BRACKET, sink)
        character = yield
        output.passing = None
        if hold:
            output.hold(character)
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{[" and len(closing) < _DEEPEST:
            closing.append("}" if character == "{" else "]")
        elif character in "{[" or (character in "}]" and character != closing.pop()):
            raise NoCall(character)
        sink(character)


def _as_object(arguments: str) -> str:
    """The text of an object. Raises NoCall for what is none, and no text of one."""
    if arguments.startswith('"'):
        arguments = str(json.loads(arguments)).strip() or "{}"
    if arguments == "null":
        return "{}"
    if not arguments.startswith("{"):
        raise NoCall
    return arguments


def _nowhere(text: str) -> None:
    """Takes what has no meaning for us."""
