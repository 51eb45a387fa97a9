"""JSON schemas of answers. None of them fetches anything."""

from __future__ import annotations

import importlib
import json
from typing import Any

_DRAFT: Any = importlib.import_module("jsonschema").Draft202012Validator
_REGISTRY: Any = importlib.import_module("referencing").Registry()
"""Knows no document, and asks for none: by itself jsonschema would fetch what `$ref` names."""


def problem_of_schema(schema: object) -> str:
    """Why this is no schema of draft 2020-12; empty if it is one, or None."""
    if schema is None:
        return ""
    errors: list[Any] = list(_DRAFT(_DRAFT.META_SCHEMA).iter_errors(schema))
    return f"is no JSON schema: {errors[0].message}" if errors else ""


def takes(schema: object, text: str) -> bool:
    """Whether the text is JSON, all of it, that the schema takes. A reference to elsewhere takes nothing."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    unresolvable: Any = importlib.import_module("referencing.exceptions").Unresolvable
    try:
        return bool(_DRAFT(schema, registry=_REGISTRY).is_valid(value))
    except (unresolvable, RecursionError):
        return False
