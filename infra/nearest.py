"""Which of the known names somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like `name`; empty if none is like it."""
    import difflib  # only who mistyped waits for it

    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to begin a hint with; empty if no known name is like `name`."""
    found = nearest(name, known)
    return f"did you mean '{found}'? " if found else ""
