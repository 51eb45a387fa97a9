"""Answers that a guide makes calls of."""

from __future__ import annotations

import pytest

from deployments.gateway.openai.tool_formats.forced import NamedCall, required
from tests.deployments.gateway.openai.tool_formats.reading import read


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "a", "arguments": {"x": "}"}}', "", [("a", '{"x": "}"}')]),
        ('\n{"name": "b", "parameters": {}}\n', "", [("b", "{}")]),
        ('{"name": "a", "arguments": {"x', "", [("a", '{"x')]),
        ('{"name": "a", "ar', '{"name": "a", "ar', []),
        ('no {"name": "a", "arguments": {}}', 'no {"name": "a", "arguments": {}}', []),
        ("", "", []),
    ],
)
def test_one_of_several_tools(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(lambda: required(["a", "b"]), text) == (content, calls)


def test_all_of_an_answer_is_arguments_of_the_named_tool() -> None:
    assert read(lambda: NamedCall("a"), '{"x": [1]}') == ("", [("a", '{"x": [1]}')])
    assert read(lambda: NamedCall("a"), "") == ("", [])
