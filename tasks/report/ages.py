"""Ages as people say them."""

from __future__ import annotations

_UNITS = (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600))
"""Unit, its seconds, and from how many seconds on the next one is used."""


def age(seconds: float | None) -> str:
    """`12 s`, `5 min`, `7 h`, `12 d`; a dash if nobody knows."""
    if seconds is None:
        return "-"
    for unit, of_it, most in _UNITS:
        if seconds < most:
            return f"{max(seconds, 0) // of_it:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"
