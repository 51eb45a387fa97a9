"""Documents from outside that can be kept: JSON that reads the same when it was written, and that nothing chokes on.

Python's parser takes more than JSON has, such as NaN, lone surrogates and a depth at which others give up. pydantic
reads back what is nested less than 200 deep.
"""

from __future__ import annotations

import json
import math

from pydantic import JsonValue

from infra.errors import EventRefused

DEEPEST = 32
"""Levels of a document. An event has three, a delivery of the Hub four."""


def parse(body: bytes) -> JsonValue:
    """The document in `body`. Raises EventRefused `event-malformed`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EventRefused(f"the body is not JSON: {error}") from error
    require_plain(document)
    return document


def require_plain(document: object) -> None:
    """Raise EventRefused `event-malformed` for what cannot be kept. Walks without recursion, level by level."""
    level, depth = [document], 0
    while level:
        if (depth := depth + 1) > DEEPEST:
            raise EventRefused(f"the document is nested more than {DEEPEST} deep")
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise EventRefused("a number is infinite, or none at all")
            elif isinstance(value, str) and not _is_text(value):
                raise EventRefused("a text has half of a surrogate pair")
        level = below


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
