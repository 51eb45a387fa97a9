"""What a command prints for a person at a terminal of 80 columns and for a program, and the snapshots of both.

A snapshot is a file of `snapshots/commands`. What differs from one run to the next (times, ports, folders) has a fixed
text of the same width in it, and a colour has its name. `ENGINEHOUSE_WRITE_SNAPSHOTS=1` writes the files again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from deployments.cli.columns import WIDTH
from deployments.cli.main import main

FOLDER = Path(__file__).parent / "snapshots" / "commands"
_COLOURS = {"0": "</>", "1": "<bold>", "2": "<dim>", "31": "<red>", "32": "<green>", "33": "<yellow>"}
_ESCAPE = re.compile(r"\x1b\[(\d+)m")
_CONTROL = re.compile(r"(\r|\n|\x1b\[2K|\x1b\[1A|\x1b\[\?25[hl])")
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d(?=[ T]?)"), "2026-11-30"),
    (re.compile(r"(?<=\d{4}-\d\d-\d\d[ T])\d\d:\d\d:\d\d(\.\d+)?"), "08:00:00"),
    (re.compile(r"(?<=\d{4}-\d\d-\d\d[ T])\d\d:\d\d(?!:)"), "08:00"),
    (re.compile(r"(?<=\x1b\[2m)\d\d:\d\d:\d\d(?= )"), "08:00:00"),
    (
        re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"),
        f"{'0' * 8}-0000-0000-0000-{'0' * 12}",
    ),
    (re.compile(r"\b[0-9a-f]{64}\b"), "0" * 64),
    (re.compile(r"\b[0-9a-f]{32}\b"), "0" * 32),
    (re.compile(r"(?<=event )[0-9a-f]{8}\b"), "0" * 8),
    (re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{12}\b"), "0" * 12),
    (re.compile(r"(?<=127\.0\.0\.1:)\d{4,5}|(?<=\bport )\d{4,5}"), "29000"),
    (re.compile(r'(?<="pid": )\d+'), "1"),
    (re.compile(r'(?<=seconds": )\d+(\.\d+)?'), "0"),
)
_ONE_WORD = re.compile(r"\s*(?:[^\s`]+|\S*`[^`]*`\S*)")
"""A line that may be too wide: a path, an address or a command, which is there to be copied."""


class Terminal(StringIO):
    """Where a person reads, and what one types."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Typed:
    """A command that was typed, and what came of it."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def typed(*words: str, colour: bool = True, person: bool = True, watched: bool = True, **environment: str) -> Typed:
    """Type a command, as a `person` at a terminal or else into a pipe. `watched`: whether stderr is a terminal too.

    The terminal says that it is 80 columns wide, and wants no `colour` by NO_COLOR.
    """
    out, err = Terminal() if person else StringIO(), Terminal() if person and watched else StringIO()
    surroundings = {"COLUMNS": str(WIDTH), "TERM": "xterm", "NO_COLOR": "" if colour else "1", **environment}
    with mock.patch.dict(os.environ, surroundings), redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return Typed(words, code, left_on_screen(out.getvalue()), left_on_screen(err.getvalue()))


def left_on_screen(text: str) -> str:
    """What a terminal shows in the end: of lines that are rewritten in place, how they were last."""
    lines, at, anew = [""], 0, False
    for part in _CONTROL.split(text):
        match part:
            case "\n":
                at, anew = at + 1, False
                lines += [""] * (at == len(lines))
            case "\x1b[1A":
                at -= 1
            case "\x1b[2K":
                lines[at] = ""
            case "\r":
                anew = True
            case "\x1b[?25h" | "\x1b[?25l" | "":  # the cursor is shown, or hidden
                pass
            case _:
                lines[at], anew = part if anew else lines[at] + part, False
    return "\n".join(lines[: at + 1])


def plain(text: str) -> str:
    return _ESCAPE.sub("", text)


def too_wide(text: str) -> list[str]:
    """The lines that a terminal would break, but for those that hold one word or command."""
    lines = plain(text).splitlines()
    return [line for line in lines if len(line) > WIDTH and not _ONE_WORD.fullmatch(line)]


def steady(text: str, **known: str) -> str:
    """The text with what varies replaced, and with the names of colours. `known` has what this run alone has."""
    for name, value in known.items():
        text = text.replace(value, name.ljust(len(value), "-")[: len(value)])
    for pattern, fixed in _VARYING:
        text = pattern.sub(fixed, text)
    return _ESCAPE.sub(lambda found: _COLOURS[found[1]], text)


def require_snapshot(name: str, shown: Typed, document: object = None, **known: str) -> None:
    """Compare with the snapshot: what was typed, both streams, the exit code, and the `document` of --json."""
    parts = [f"$ enginehouse {shlex.join(shown.words)}\n", shown.out]
    if shown.err:
        parts += ["--- stderr\n", shown.err]
    parts.append(f"--- exit code {shown.code}\n")
    if document is not None:
        parts += ["--- JSON\n", json.dumps(document, indent=1, ensure_ascii=False), "\n"]
    text = steady("".join(parts), **known)
    path = FOLDER / f"{name}.txt"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
