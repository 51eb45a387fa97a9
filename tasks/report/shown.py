"""Texts of others as a reader may see them: bounded, and without characters that do something."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

MOST_CHARACTERS = 1500
"""Of one answer or question: enough to see how two differ, and a few pages at most."""
MOST_IN_A_CELL = 240
MOST_ROWS = 60
"""Of one table, or comparisons of one gate."""
MOST_ANSWERS = 20
"""Pairs of one gate."""
MOST_PICTURES = 12
"""Distributions of one gate."""

_T = TypeVar("_T")

# Control characters move a terminal's cursor and colour; those of direction turn the text beside them around (Unicode
# Technical Report 36, 3.1). A surrogate alone cannot be encoded. Tabs and line ends are what they seem.
_ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, with characters that do something written as `\\x1b`, and how many more there are beyond `most`."""
    kept = _ACTIVE.sub(_escaped, text[:most].replace("\r\n", "\n"))
    return kept if len(text) <= most else f"{kept} … and {len(text) - most:,} more characters"


def cell(text: str) -> str:
    """The same on one line."""
    return " ".join(shown(text, MOST_IN_A_CELL).split())


def first(things: Sequence[_T], most: int) -> tuple[Sequence[_T], int]:
    """The first `most` of them, and how many are left out."""
    return things[:most], max(0, len(things) - most)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
