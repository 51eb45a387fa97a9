"""Lines of columns that fit a terminal, with colour where a person looks at one."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TextIO

from deployments.cli.people import short

Colour = Literal["", "bold", "dim", "red", "green", "yellow"]
_CODES: dict[Colour, str] = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
WIDTH = 80
"""Of a line that goes elsewhere than to a terminal."""
_GAP = 2
_INDENT = re.compile("[ │├└─]*")
_COMMAND = re.compile("`[^`]+`")
_NO_BREAK = "\ue000"
"""Stands for a space at which no line ends: a character for private use, so that no text has it."""


class Cell(NamedTuple):
    """The text of one column in one line."""

    text: str
    colour: Colour = ""


@dataclass(frozen=True)
class Style:
    """How wide lines are, whether they have colours, and whether a person looks at a terminal."""

    width: int = WIDTH
    colour: bool = False
    is_terminal: bool = False

    @classmethod
    def of_stdout(cls) -> Style:
        return cls.of(sys.stdout)

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """Colours at a terminal, unless NO_COLOR (https://no-color.org) says otherwise; as wide as the terminal."""
        if not stream.isatty():
            return cls()
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return cls(max(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH), colour, is_terminal=True)

    def paint(self, text: str, colour: Colour) -> str:
        """The text in this colour, if there are colours."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self.colour and colour and text else text

    def paragraph(self, label: str, text: str, colour: Colour = "") -> Iterator[str]:
        """`label: text` below a row, broken into lines; what is broken goes on below the text."""
        start = f"    {label}: "
        lines = _wrapped(text, self.width - len(start))
        yield f"    {self.paint(label, colour)}: {lines[0]}".rstrip()
        yield from (" " * len(start) + line for line in lines[1:])


def print_fitted(lines: Iterable[str], *, long: bool = False, stream: TextIO | None = None) -> None:
    """Print lines with short references, with `long` as they are. At a terminal, those that are too wide are broken."""
    style = Style.of(stream or sys.stdout)
    for line in lines:
        text = line if long else short(line)
        for part in fitted(text, style.width) if style.is_terminal and not long else [text]:
            print(part, file=stream, flush=True)


def fitted(line: str, width: int) -> list[str]:
    """The line in parts that fit. What is broken off is indented further than the line, also below a tree's branch."""
    start = _INDENT.match(line)
    indent = "" if start is None else start.group().replace("├─", "│ ").replace("└─", "  ")
    return _wrapped(line, width, f"{indent}    ")


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The text in lines. A path, an address or a command in `` stays whole, so that it can be copied."""
    whole = _COMMAND.sub(lambda found: found[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(whole, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    return [line.replace(_NO_BREAK, " ") for line in lines] or [""]


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a line of heads, and a line for each row; cells that have no head come below it, each on its own line."""
    style = Style.of_stdout()
    head, lines = columns(heads, [row[: len(heads)] for row in rows], style)
    print(head)
    for row, line in zip(rows, lines, strict=True):
        print(line)
        for cell in row[len(heads) :]:
            for part in fitted(f"    {cell.text}", style.width) if style.is_terminal else [f"    {cell.text}"]:
                print(part)


def columns(heads: Sequence[str], rows: Sequence[Sequence[Cell]], style: Style) -> tuple[str, list[str]]:
    """The line of heads, and a line for each row. The first column gets what the others leave.

    A first cell that is too long has a line of its own, and the others come below it. Nothing is cut.
    """
    others = [max(len(head), *(len(row[n].text) for row in rows)) for n, head in enumerate(heads) if n] if rows else []
    widest = max((len(row[0].text) for row in rows), default=len(heads[0]))
    room = max(style.width - sum(others) - _GAP * len(others), len(heads[0]))
    widths = [max(min(widest, room), len(heads[0])), *others]
    return _line([Cell(head, "bold") for head in heads], widths, style), [_line(row, widths, style) for row in rows]


def _line(cells: Iterable[Cell], widths: Sequence[int], style: Style) -> str:
    first, *others = cells
    width = widths[0]
    padded = [
        f"{style.paint(cell.text, cell.colour)}{' ' * (n - len(cell.text))}"
        for cell, n in zip(others, widths[1:], strict=False)
    ]
    rest = (" " * _GAP).join(["", *padded]).rstrip()
    head = style.paint(first.text, first.colour)
    if len(first.text) > width:
        return f"{head}\n{' ' * width}{rest}"
    return f"{head}{' ' * (width - len(first.text))}{rest}".rstrip()
