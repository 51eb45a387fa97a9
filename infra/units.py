"""Ages, times and sizes as people say them."""

from __future__ import annotations

_UNITS = (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600))
"""Unit, its seconds, and from how many seconds on the next one is used."""
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def age(seconds: float | None) -> str:
    """`12 s`, `5 min`, `7 h`, `12 d`; a dash if nobody knows."""
    if seconds is None:
        return "-"
    for unit, of_it, most in _UNITS:
        if seconds < most:
            return f"{max(seconds, 0) // of_it:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


def size(bytes: float) -> str:
    """`93.8 MiB`."""
    number, unit = float(bytes), _SIZES[0]
    for unit in _SIZES:
        if number < 1024 or unit == _SIZES[-1]:
            break
        number /= 1024
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
