"""Ages, sizes and references as people say them."""

from __future__ import annotations

import re

from tasks.report.ages import age

__all__ = ["age", "short", "size"]

_REFERENCE = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_RUN = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def size(bytes: int) -> str:
    """`93.8 MiB`."""
    number, unit = float(bytes), _SIZES[0]
    for unit in _SIZES:
        if number < 1024 or unit == _SIZES[-1]:
            break
        number /= 1024
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def short(text: object) -> str:
    """A text in which identities and digests have 12 of their 64 digits, which commands take, and ids of runs 8."""
    return _RUN.sub(r"\1", _REFERENCE.sub(r"\1", str(text)))
