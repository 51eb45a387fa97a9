"""What a form offers, in the two readings of one schema: the server's, and that of the UI."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import is_valid_schema, validate

from deployments.prefect_server.choices import Choice, with_choices

SCHEMA: dict[str, Any] = {
    "title": "Parameters",
    "type": "object",
    "required": ["model"],
    "properties": {
        "model": {"title": "model", "type": "string", "description": "Its name."},
        "targets": {"title": "targets", "type": "array", "items": {"type": "string"}, "default": []},
        "retry": {"title": "retry", "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        "dry_run": {"title": "dry_run", "type": "boolean", "default": False},
    },
}
CHOICES = (Choice("model", ("model", "retry"), ("a", "b")), Choice("target", ("target", "targets"), ("east",)))


def as_the_ui_reads(field: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """A reference is looked up below the whole schema, and the field's own words count."""
    if "$ref" in field:
        return {**schema["definitions"][field["$ref"].removeprefix("#/definitions/")], **field}
    return field


def test_the_ui_offers_what_there_is() -> None:
    schema: Any = with_choices(SCHEMA, CHOICES)
    form = schema["properties"]
    model = as_the_ui_reads(form["model"], schema)
    assert (model["type"], model["enum"], model["description"]) == ("string", ["a", "b"], "Its name.")
    assert as_the_ui_reads(form["targets"]["items"], schema)["enum"] == ["east"]
    assert as_the_ui_reads(form["retry"]["anyOf"][0]["items"], schema)["enum"] == ["a", "b"]
    assert form["dry_run"] == SCHEMA["properties"]["dry_run"]


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"model": "a", "targets": ["east"], "retry": ["b"]}, 0),
        ({"model": "newer than the deploy", "targets": ["west"], "retry": ["gone"]}, 0),
        ({"model": 7}, 1),
        ({"model": "a", "targets": [7]}, 1),
        ({}, 1),
    ],
)
def test_the_server_takes_any_name_and_nothing_else(parameters: dict[str, Any], wrong: int) -> None:
    schema: Any = with_choices(SCHEMA, CHOICES)
    is_valid_schema(schema)
    assert len(validate(parameters, schema)) == wrong


def test_without_a_name_there_is_nothing_to_choose() -> None:
    assert (
        with_choices(SCHEMA, (Choice("model", ("model",), ()), Choice("runtime", ("runtime",), ("1.2.1",)))) == SCHEMA
    )
