"""Checks of a client, run one after the other by an interpreter that has it: a line of JSON for each.

The environment says where the gateway is (`GATEWAY`), with which key (`KEY`), and what the model is called (`MODEL`).
It imports nothing of Enginehouse: the interpreter is another one.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

BASE = os.environ.get("GATEWAY", "") + "/v1"
KEY = os.environ.get("KEY", "")
MODEL = os.environ.get("MODEL", "")

Check = Callable[[], None]
_checks: list[Check] = []


def check(function: Check) -> Check:
    """Registers a check, which fails by an exception."""
    _checks.append(function)
    return function


def run() -> None:
    """All checks, or those that the command line names."""
    for each in _checks:
        if len(sys.argv) > 1 and each.__name__ not in sys.argv[1:]:
            continue
        begun, failure = time.monotonic(), ""
        try:
            each()
        except Exception:
            failure = traceback.format_exc(limit=-3)
        print(json.dumps([each.__name__, round(time.monotonic() - begun, 2), failure]), flush=True)


def refused(kind: type[Exception], call: Callable[[], object], **expected: object) -> None:
    """The call raises this kind of error, with these attributes."""
    try:
        call()
    except Exception as error:
        assert isinstance(error, kind), repr(error)
        found = {name: getattr(error, name) for name in expected}
        assert found == expected, f"{found}: {error}"
    else:
        raise AssertionError(f"no {kind.__name__}")


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}


def require_weather(arguments: str) -> None:
    """The arguments are those that the schema allows."""
    found = json.loads(arguments)
    assert found.keys() == {"city", "days"} and found["city"] in ("Oslo", "Rome"), found
    assert isinstance(found["days"], int), found
