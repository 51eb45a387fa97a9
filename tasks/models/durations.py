"""Times as a model's file writes them: `30m`, `90s`, `1h`, `1h30m`, or a number of seconds."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

_PARTS = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds(value: object) -> object:
    """The seconds of a time. Numbers, and what is no text, are left to the validation of numbers."""
    if not isinstance(value, str):
        return value
    found = _PARTS.fullmatch(value.strip())
    if found is None or not any(found.groups()):
        raise ValueError(f"{value!r} is no time, such as 30m, 90s or 1h30m")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + rest)


Seconds: TypeAlias = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)]
