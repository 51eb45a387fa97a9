"""Where a model keeps its chat templates."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.serving.templates import read_templates

NAMED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]


@pytest.mark.parametrize(
    ("files", "templates"),
    [
        ({}, {}),
        ({"tokenizer_config.json": {"chat_template": None}}, {}),
        ({"tokenizer_config.json": {"chat_template": "one"}}, {"default": "one"}),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, {"default": "d", "tool_use": "t"}),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "seen"}}, {"default": "seen"}),
        ({"tokenizer_config.json": {"chat_template": "one"}, "chat_template.jinja": "file"}, {"default": "file"}),
        (
            {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "further"},
            {"default": "file", "tool_use": "further"},
        ),
        (
            {"tokenizer_config.json": {"chat_template": "one"}, "additional_chat_templates/tool_use.jinja": "further"},
            {"default": "one", "tool_use": "further"},
        ),
        ({"tokenizer_config.json": [1], "chat_template.json": {"chat_template": [1, {"name": 2}]}}, {}),
    ],
)
def test_templates_of_every_place(files: dict[str, Any], templates: dict[str, str]) -> None:
    bytes_of = {name: (each if name.endswith(".jinja") else json.dumps(each)).encode() for name, each in files.items()}
    assert read_templates(bytes_of.get, ["tool_use"]) == templates


def test_what_is_no_json_or_no_text_is_an_error() -> None:
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        with pytest.raises(ValueError, match=r"decode|Expecting"):
            read_templates({name: b"\xff{"}.get)
