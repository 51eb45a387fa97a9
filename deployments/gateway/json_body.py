"""JSON bodies from outside."""

from __future__ import annotations

import json

from pydantic import JsonValue

from deployments.gateway.tensors import malformed


def parse_json(body: bytes) -> JsonValue:
    """What a body holds. Raises GatewayError, code `request-malformed`: also for NaN, and for a field that is twice."""
    try:
        return json.loads(body, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        # The decoder's own message has a position and no text of the body.
        what = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise malformed(f"the body is no JSON: {what}") from None


def parse_object(body: bytes) -> dict[str, JsonValue]:
    """The same of an object. Raises GatewayError, code `request-malformed`."""
    found = parse_json(body)
    if not isinstance(found, dict):
        raise malformed("the body is no JSON object")
    return found


def _refuse(constant: str) -> JsonValue:
    raise ValueError(f"{constant} is no number in JSON")


def _once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found
