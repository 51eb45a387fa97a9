"""Where a grammar writes: what it holds, the white space before a call, and the events so far."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias

from .events import CallArguments, CallStart, Content, Event, joined

MOST_HELD = 16_384
"""Characters that are held because they may become a call."""

MOST_SPACE = 64
"""White space that is held because a call may follow it."""

Grammar: TypeAlias = Generator[None, str, None]
Sink: TypeAlias = Callable[[str], None]
Passing: TypeAlias = tuple[re.Pattern[str], Sink]
"""Everything before the next match goes straight to the sink: the grammar would do the same, one by one."""


class NoCall(Exception):
    """What looked like a call is none, or no longer one. `rest` is what was read of it, where nothing is held."""

    def __init__(self, rest: str = "") -> None:
        super().__init__("no call")
        self.rest = rest


class Output:
    """`held` are the characters that may become a call, or a marker. `behind_call`: no text has come since the last.

    `passing` is None wherever a grammar has to see each character.
    """

    def __init__(self, closing: str = "") -> None:
        self.held = ""
        self.passing: Passing | None = None
        self._closing = closing
        self._space = self._before_calls = ""
        self._spoken = False
        self.behind_call = False
        self._calls = 0
        self._events: list[Event] = []

    def hold(self, character: str) -> None:
        """Raises NoCall where too much is held."""
        self.held += character
        if len(self.held) > MOST_HELD:
            raise NoCall

    def release(self, length: int) -> None:
        """The first characters that are held are text."""
        text, self.held = self.held[:length], self.held[length:]
        self.text(text)

    def text(self, text: str) -> None:
        """The next of the text; white space at its end waits for what follows."""
        body = text.rstrip()
        if body:
            self._events.append(Content(self._from_gap(body) if self.behind_call else self._space + body))
            self._space = self._before_calls = ""
            self.behind_call, self._spoken = False, True
        self._space += text[len(body) :]
        if self.behind_call:
            self._space = self._space[:MOST_SPACE]
        elif (over := len(self._space) - MOST_SPACE) > 0:
            self._events.append(Content(self._space[:over]))
            self._space = self._space[over:]

    def _from_gap(self, body: str) -> str:
        """The first text behind calls. Where there is some before them too, white space keeps the two apart."""
        text = body.lstrip()
        behind_calls = self._space + body[: len(body) - len(text)]
        return (self._before_calls or behind_calls)[:MOST_SPACE] + text if self._spoken else text

    def start(self, name: str) -> int:
        """A call begins; what is held is its beginning. Returns its number."""
        index, self._calls = self._calls, self._calls + 1
        self._before_calls = self._before_calls or self._space
        self.held = self._space = ""
        self.behind_call = True
        self._events.append(CallStart(index, name))
        return index

    def arguments(self, index: int, text: str) -> None:
        """The next of the arguments of a call that has begun."""
        self._events.append(CallArguments(index, text))

    def end(self) -> None:
        """Nothing follows. A marker that closes a call, and does not come whole, is no text either."""
        if self.behind_call and self._closing.startswith(self.held.strip()):
            self.held = ""
        self.release(len(self.held))
        if not self.behind_call:
            self._events.append(Content(self._space))
        self._space = ""

    def take(self) -> list[Event]:
        """The events since the last time."""
        events, self._events = joined(self._events), []
        return events


class GrammarParser:
    """A grammar that is fed the text of an answer. The grammar itself never ends."""

    def __init__(self, grammar: Callable[[Output], Grammar], closing: str = "") -> None:
        self._output = Output(closing)
        self._grammar = grammar(self._output)
        next(self._grammar)

    def feed(self, text: str) -> list[Event]:
        at = 0
        while at < len(text):
            if self._output.passing is not None:
                pattern, sink = self._output.passing
                found = pattern.search(text, at)
                end = found.start() if found else len(text)
                if end > at:
                    sink(text[at:end])
                    at = end
                    continue
            self._grammar.send(text[at])
            at += 1
        return self._output.take()

    def end(self) -> list[Event]:
        self._grammar.close()
        self._output.end()
        return self._output.take()


def text_until(output: Output, *markers: str) -> Generator[None, str, str]:
    """Everything is text up to one of the markers, which is then held, and returned.

    What is held already is the beginning, and has none of the markers in it.
    """
    begun = {marker[:length] for marker in markers for length in range(1, len(marker) + 1)}
    longest = max(map(len, markers))
    first = re.compile("|".join(re.escape(marker[0]) for marker in markers))
    while output.held not in markers:
        for start in range(max(len(output.held) - longest, 0), len(output.held) + 1):
            if output.held[start:] in begun or start == len(output.held):
                output.release(start)
                break
        if output.held not in markers:
            output.passing = None if output.held else (first, output.text)
            character = yield
            output.passing = None
            output.held += character
    return output.held


def attempt(output: Output, call: Grammar) -> Generator[None, str, bool]:
    """Whether there was a call. Where there was none, what was read of it is held, for `text_until` to go on with."""
    try:
        yield from call
    except NoCall as none:
        output.held = output.held or none.rest
        return False
    return True


def calls(
    output: Output, bare: Callable[[], Grammar], markers: tuple[str, ...], marked: Callable[[str], Grammar]
) -> Grammar:
    """A whole answer. `bare` reads calls where they need no marker, `marked` those behind the marker that it is given.

    Both begin with nothing but that marker held, and raise NoCall.
    """
    while True:
        called = yield from attempt(output, bare())
        while not called:
            marker = yield from text_until(output, *markers)
            called = yield from attempt(output, marked(marker))


def literal(output: Output, wanted: str) -> Generator[None, str, None]:
    """Exactly these characters, which are held. Raises NoCall."""
    for expected in wanted:
        output.hold((yield))
        if output.held[-1] != expected:
            raise NoCall


def past_space(output: Output) -> Generator[None, str, str]:
    """The next character that is no white space. All of them are held."""
    while True:
        output.hold((yield))
        if not output.held[-1].isspace():
            return output.held[-1]
