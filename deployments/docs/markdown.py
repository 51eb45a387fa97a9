"""Markdown of the generated pages: tables, and text of the source that must not be read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_MARKUP = re.compile(r"([\\*_<>\[\]|])")


def escaped(text: str) -> str:
    """A sentence of the source in one line. What stands between backticks stays code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _MARKUP.sub(r"\\\1", part) for part in parts)


def in_table(text: str) -> str:
    """The same, in the cell of a table, where `|` ends a cell even in code."""
    return escaped(text).replace("\\|", "|").replace("|", "\\|")


def code(text: str) -> str:
    """Code in a cell of a table or in a line."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, and an empty one."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""
