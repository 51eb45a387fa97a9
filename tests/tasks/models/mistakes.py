"""What is wrong with a model's file, for tests: where, and of which type, without the prose."""

from __future__ import annotations

from pydantic import ValidationError


def mistakes(error: ValidationError) -> dict[str, str]:
    """The type of each mistake, by its dotted place in the document."""
    return {".".join(map(str, detail["loc"])): detail["type"] for detail in error.errors()}
