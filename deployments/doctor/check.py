"""The protocol of a check: a name, what it looks at, and a function that yields what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from infra.settings import Settings

State = Literal["fine", "notice", "wrong", "not made"]
"""`notice` is worth knowing and stops nothing; `not made` says that this machine cannot know, or has no use for it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found. Of what is `wrong`, `code` names it and `remedy` is what to type."""

    state: State
    what: str
    code: str = ""
    remedy: str = ""


def fine(what: str) -> Finding:
    return Finding("fine", what)


def not_made(what: str) -> Finding:
    return Finding("not made", what)


def notice(code: str, what: str, remedy: str) -> Finding:
    return Finding("notice", what, code, remedy)


def wrong(code: str, what: str, remedy: str) -> Finding:
    return Finding("wrong", what, code, remedy)


@dataclass(frozen=True)
class Check:
    """`look` may raise: an EnginehouseError is a finding with its code and hint. It ends within `within_s` seconds."""

    name: str
    looks_at: str
    look: Callable[[Settings], Iterable[Finding]]
    within_s: float = 20.0
    needs: str = ""
    """The check on which this one rests: what is wrong there is not told here a second time."""
