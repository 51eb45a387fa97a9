"""Calls in tags, whose values have the types of the tool's schema."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deployments.gateway.openai.tool_formats.events import CallArguments, CallStart
from deployments.gateway.openai.tool_formats.qwen3_coder import qwen3_coder
from tests.deployments.gateway.openai.tool_formats.reading import read

SCHEMAS: dict[str, dict[str, Any]] = {
    "edit": {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "line": {"type": "integer"},
            "scale": {"type": "number"},
            "dry": {"type": "boolean"},
            "lines": {"type": "array"},
            "owner": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "either": {"type": ["integer", "string", "null"]},
            "odd": {"type": [{}, "integer"], "anyOf": [5]},
            "any": {"$ref": "#/$defs/any"},
        },
    }
}


def call(*parameters: tuple[str, str]) -> str:
    inner = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in parameters)
    return f"<tool_call>\n<function=edit>\n{inner}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("path", "a/b.py", "a/b.py"),
        ("path", "17", "17"),
        ("path", "", ""),
        ("path", "\n  two\n\nlines \n", "\n  two\n\nlines \n"),
        ("path", 'say "hi" \\ \t é 🙂 </', 'say "hi" \\ \t é 🙂 </'),
        ("path", "<parameter=x>\n1\n</parameter>\n text", "<parameter=x>\n1\n</parameter>\n text"),
        ("path", "a</parameter>" + " " * 200 + "b", "a</parameter>" + " " * 200 + "b"),
        ("line", "17", 17),
        ("line", "seventeen", "seventeen"),
        ("line", "1.5", "1.5"),
        ("scale", "1.5", 1.5),
        ("scale", "2", 2),
        ("scale", "NaN", "NaN"),
        ("odd", "5", 5),
        ("dry", "True", True),
        ("dry", "false", False),
        ("lines", '[1, "</parameter>"]', [1, "</parameter>"]),
        ("lines", "[1,", "[1,"),
        ("owner", "null", None),
        ("owner", "None", None),
        ("owner", "me", "me"),
        ("either", "5", 5),
        ("either", "five", "five"),
        ("any", '{"a": 1}', {"a": 1}),
        ("any", "5", "5"),
        ("unknown", "x", "x"),
    ],
)
def test_values(name: str, value: str, expected: object) -> None:
    content, calls = read(lambda: qwen3_coder(SCHEMAS), "Well.\n" + call((name, value), ("path", "p")))
    assert content == "Well."
    ((called, arguments),) = calls
    assert (called, json.loads(arguments)) == ("edit", {name: expected} | {"path": "p"})


def test_calls_one_after_the_other_with_and_without_their_outer_tags() -> None:
    bare = call(("line", "1")).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    for text in (call(("line", "1")) + "\n" + call() + "\nDone.", bare + "\n" + call() + "Done."):
        assert read(lambda: qwen3_coder(SCHEMAS), text) == ("Done.", [("edit", '{"line": 1}'), ("edit", "{}")])
    assert read(lambda: qwen3_coder(SCHEMAS), "So: " + bare) == ("So:", [("edit", '{"line": 1}')])


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("<function=other>\n</function>", "<function=other>\n</function>", []),
        ("<tool_call>\n<function=other>\n</function>", "", [("other", "{}")]),
        ("<tool_call>{}", "<tool_call>{}", []),
        ("<function=edit", "<function=edit", []),
        ("<function=edit\n>", "<function=edit\n>", []),
        # A closing tag of the function is missing, something else comes, or the answer is cut off.
        ("<tool_call><function=edit><parameter=line>1</parameter></tool_call>x", "x", [("edit", '{"line": 1}')]),
        ("<tool_call><function=edit>oh", "oh", [("edit", "{")]),
        ("<tool_call><function=edit><parameter=path>\nab", "", [("edit", '{"path": "ab')]),
        ("<tool_call><function=edit></function></tool", "", [("edit", "{}")]),
        ("<tool_call><function=edit></function>\nx", "x", [("edit", "{}")]),
    ],
)
def test_what_is_not_whole(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(lambda: qwen3_coder(SCHEMAS), text) == (content, calls)


def test_text_is_passed_on_as_it_comes_and_other_values_once_they_are_whole() -> None:
    parser = qwen3_coder(SCHEMAS)
    assert parser.feed("<tool_call>\n<function=edit>\n<parameter=pa") == [CallStart(0, "edit"), CallArguments(0, "{")]
    assert parser.feed("th>\nfir") == [CallArguments(0, '"path": "fir')]
    assert parser.feed('st "\n</param') == [CallArguments(0, 'st \\"')]
    assert parser.feed("eter>\n<parameter=line>\n1") == [CallArguments(0, '", "line": ')]
    assert parser.feed("2\n</parameter>\n</function>") == [CallArguments(0, "12}")]
