"""How a known failure of a tool or of a server is recognized, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One known failure. `pattern` is searched in a text; its first group that matches fills the `{0}` of `message`."""

    code: str
    pattern: str
    message: str
    hint: str
    retryable: bool = False


def first_known(failures: Sequence[Failure], text: str) -> tuple[Failure, str] | None:
    """The first of `failures` in `text`, and what its pattern matched, at most 300 characters. None without a match."""
    for failure in failures:
        if found := re.search(failure.pattern, text):
            return failure, next(group for group in found.groups() if group is not None).strip()[:300]
    return None
