"""Ages, sizes and references as people say them."""

from __future__ import annotations

import re

from infra.units import age, size

__all__ = ["age", "printable", "short", "size"]

_REFERENCE = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_RUN = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
"""What tools send to a terminal for colours, the cursor and the title."""


def printable(text: str) -> str:
    """One line of what another program printed, without what would move a terminal's cursor or change its colours."""
    return "".join(sign if sign.isprintable() else " " for sign in _ESCAPE.sub("", text)).rstrip()


def short(text: object) -> str:
    """A text in which identities and digests have 12 of their 64 digits, which commands take, and ids of runs 8."""
    return _RUN.sub(r"\1", _REFERENCE.sub(r"\1", str(text)))
