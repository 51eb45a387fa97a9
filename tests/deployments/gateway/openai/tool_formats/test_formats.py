"""What each format reads as calls, and what it leaves as text. Every case is read whole, by character and in parts."""

from __future__ import annotations

import json
import random

import pytest

from deployments.gateway.openai.tool_formats.choice import TOOL_PARSERS, ToolParserName
from deployments.gateway.openai.tool_formats.events import CallArguments, CallStart, Content, ToolParser
from deployments.gateway.openai.tool_formats.output import MOST_HELD
from tests.deployments.gateway.openai.tool_formats.reading import Calls, read, read_in_parts, split_at_random

SCHEMAS = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "weather_now": {"type": "object"},
}

PARIS = '{"city": "Paris", "days": 3}'
HARD = '{"text": "}\\"]{ \\\\", "日本": [{"a": [1, {}]}], "e": "é 🙂"}'


def parser(name: ToolParserName) -> ToolParser:
    return TOOL_PARSERS[name](SCHEMAS)


def check(name: ToolParserName, text: str, content: str, calls: Calls) -> None:
    assert read(lambda: parser(name), text) == (content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f'{{"name": "weather", "parameters": {PARIS}}}', "", [("weather", PARIS)]),
        (f'\n <|python_tag|>{{"name": "weather", "parameters": {HARD}}}', "", [("weather", HARD)]),
        (f'<|python_tag|>{{"name": "made_up", "arguments": {PARIS}}}', "", [("made_up", PARIS)]),
        (
            f'Let me look.\n\n<|python_tag|>{{"name":"weather","parameters":{PARIS}}}\n',
            "Let me look.",
            [("weather", PARIS)],
        ),
        (
            f'{{"name": "weather", "parameters": {PARIS}}}; {{"name": "weather_now", "parameters": {{}}}}',
            "",
            [("weather", PARIS), ("weather_now", "{}")],
        ),
        (
            f'<|python_tag|>{{"name": "a", "parameters": {PARIS}}};<|python_tag|>{{"name": "b", "parameters": {{}}}}',
            "",
            [("a", PARIS), ("b", "{}")],
        ),
        (f'{{"type": "function", "parameters": {PARIS}, "name": "weather"}}', "", [("weather", PARIS)]),
        (f'{{"name": "weather", "parameters": {json.dumps(PARIS)}}}', "", [("weather", PARIS)]),
        ('{"name": "weather", "parameters": null}', "", [("weather", "{}")]),
        (
            f'{{"name": "weather", "parameters": {PARIS}, "more": [1, "}}"], "n": 1.5e3 }} Done.',
            "Done.",
            [("weather", PARIS)],
        ),
        ('{"name": "\\u0077eather", "parameters": {}}', "", [("weather", "{}")]),
        # An answer that was cut off in the middle of the arguments, and one before they began.
        ('{"name": "weather", "parameters": {"city": "Par', "", [("weather", '{"city": "Par')]),
        ('{"name": "weather", "para', '{"name": "weather", "para', []),
        ('{"name": "weather", "parameters": {}};', "", [("weather", "{}")]),
        ('{"name": "weather", "parameters": {}}; or not', "; or not", [("weather", "{}")]),
        ('<|python_tag|>{"name": "a", "parameters": {}};<|python', ";<|python", [("a", "{}")]),
    ],
)
def test_llama(text: str, content: str, calls: Calls) -> None:
    check("llama3", text, content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello! \n\n  How are you?  ",
        '{"name": "Alice", "parameters": {"age": 3}}',
        '{"name": "weather"}',
        '{"name": "weather", "description": "of a city", "parameters": {"type": "object"}}',
        '{"name": "weather", "parameters": [1]} and so on',
        '{"name": "weather", "parameters": 5}',
        '{"name": 5, "parameters": {}}',
        '{"name" "weather"}',
        '{name: "weather"}',
        '{"parameters": {"a": 1]}, "name": "weather"}',
        f'For example {{"name": "weather", "parameters": {PARIS}}}.',
        '<|python_tag|>brave_search.call(query="weather")',
        "<|python_tag|>",
        "<|python_tag <|python_tag <| < |>",
        '{"name": "weather\\ud800", "parameters": {}}',
        '{"name": "wea\\xther", "parameters": {}}',
        '{"parameters": ' + "{" * 300 + "}" * 300 + ', "name": "weather"}',
        '{"parameters": {"long": "' + "x" * MOST_HELD + '"}, "name": "weather"} tail',
        " " * 200 + "x" + " " * 200,
        " " * (MOST_HELD + 5),
        '"' * 50,
        "}{][",
    ],
)
@pytest.mark.parametrize("name", list(TOOL_PARSERS))
def test_what_is_no_call_is_text_to_the_last_character(name: ToolParserName, text: str) -> None:
    check(name, text, text, [])


@pytest.mark.parametrize("name", ["qwen", "hermes"])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>', "", [("weather", PARIS)]),
        (
            f'I will.\n<tool_call>{{"name": "a", "arguments": {HARD}}}</tool_call>\n'
            f'<tool_call>{{"arguments": {PARIS}, "name": "b"}}</tool_call>\nDone. \n',
            "I will.\nDone. \n",
            [("a", HARD), ("b", PARIS)],
        ),
        ('<tool_call>{"name": "weather"}</tool_call>', "", [("weather", "{}")]),
        (
            '<tool_call>{"name": "a", "arguments": {}}{"name": "b", "arguments": {}}</tool_call>',
            "",
            [("a", "{}"), ("b", "{}")],
        ),
        # The closing tag is missing, or cut off, or is another one.
        ('<tool_call>{"name": "a", "arguments": {}}', "", [("a", "{}")]),
        ('<tool_call>{"name": "a", "arguments": {}}\n</tool_', "", [("a", "{}")]),
        ('<tool_call>{"name": "a", "arguments": {}}</tool_box>', "</tool_box>", [("a", "{}")]),
        ('<tool_call>{"name": "a", "arguments": {}}<tool_call>{"name": "b"}', "", [("a", "{}"), ("b", "{}")]),
        # What begins as a call and is none is text, and what follows is read as before.
        ('<tool_call>nothing</tool_call> <tool_call>{"name": "a"}', "<tool_call>nothing</tool_call>", [("a", "{}")]),
        ('<tool_call> <tool_call>{"name": "a"}</tool_call>', "<tool_call>", [("a", "{}")]),
        ('<tool_call>{"name": <tool_call>{"name": "a"}</tool_call>', '<tool_call>{"name":', [("a", "{}")]),
        ('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>', []),
        ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
        ('<<tool_call>{"name": "a"}</tool_call>', "<", [("a", "{}")]),
        (
            'a<tool_call>{"name": "b"}</tool_call>\n\n <tool_call>{"name": "c"}</tool_call>\nd',
            "a\n\n d",
            [("b", "{}"), ("c", "{}")],
        ),
        ('a<tool_call>{"name": "b"}</tool_call>' + " " * 99 + "c", "a" + " " * 64 + "c", [("b", "{}")]),
        ('a \n<tool_call>{"name": "b"}</tool_call>\n\n c', "a \nc", [("b", "{}")]),
        ('<tool_call>{"name": "b"}</tool_call>\n c \n', "c \n", [("b", "{}")]),
        ("a < b and <tool_calls> or </tool_call>", "a < b and <tool_calls> or </tool_call>", []),
        # A tokenizer that leaves the tags out.
        (
            f'{{"name": "weather", "arguments": {PARIS}}}\n{{"name": "weather_now", "arguments": {{}}}}',
            "",
            [("weather", PARIS), ("weather_now", "{}")],
        ),
        # The brackets of the arguments do not fit: what came was passed on, what follows is text.
        ('<tool_call>{"name": "a", "arguments": {"x": [1}} oh', "}} oh", [("a", '{"x": [1')]),
        ('<tool_call>{"name": "a", "arguments": {} "id"} oh', '"id"} oh', [("a", "{}")]),
    ],
)
def test_hermes_and_qwen(name: ToolParserName, text: str, content: str, calls: Calls) -> None:
    check(name, text, content, calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}, "id": "123456789"}}]', "", [("weather", PARIS)]),
        (
            f'Yes.\n[TOOL_CALLS][{{"name": "a", "arguments": {HARD}}}, {{"arguments": {PARIS}, "name": "b"}}] ',
            "Yes.",
            [("a", HARD), ("b", PARIS)],
        ),
        (f"[TOOL_CALLS]weather[ARGS]{PARIS}", "", [("weather", PARIS)]),
        (f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{HARD}", "", [("weather", HARD)]),
        (f"Yes.[TOOL_CALLS]made-up{PARIS}[TOOL_CALLS]b[ARGS] {{}}", "Yes.", [("made-up", PARIS), ("b", "{}")]),
        (f"[TOOL_CALLS] weather {PARIS}", "", [("weather", PARIS)]),
        ('[TOOL_CALLS]{"name": "a", "arguments": {}}', "", [("a", "{}")]),
        # A tokenizer that leaves the marks out.
        (f'[{{"name": "weather", "arguments": {PARIS}}}]', "", [("weather", PARIS)]),
        (f"weather{PARIS}weather_now{{}}", "", [("weather", PARIS), ("weather_now", "{}")]),
        (f"weather[ARGS]{PARIS}", "", [("weather", PARIS)]),
        # Not quite.
        ("weather_map{}", "weather_map{}", []),
        (f"weather {PARIS}", f"weather {PARIS}", []),
        (f"The weather{PARIS}", f"The weather{PARIS}", []),
        ('[{"name": "Alice", "arguments": {}}]', '[{"name": "Alice", "arguments": {}}]', []),
        ("[TOOL_CALLS] []", "[TOOL_CALLS] []", []),
        ("[TOOL_CALLS]a[ARGS]nothing", "[TOOL_CALLS]a[ARGS]nothing", []),
        ("[TOOL_CALLS]a[CALL_ID]-[ARGS]{}", "[TOOL_CALLS]a[CALL_ID]-[ARGS]{}", []),
        ("[[TOOL_CALLS]a{}", "[", [("a", "{}")]),
        ("[Tonight] [TOOL_CALL] [TOOL_CALLS", "[Tonight] [TOOL_CALL] [TOOL_CALLS", []),
        ('[TOOL_CALLS][{"name": "a", "arguments": {}}, oh]', ", oh]", [("a", "{}")]),
        ("[TOOL_CALLS]" + "n" * 70 + "{}", "[TOOL_CALLS]" + "n" * 70 + "{}", []),
    ],
)
def test_mistral(text: str, content: str, calls: Calls) -> None:
    check("mistral", text, content, calls)


def test_arguments_are_passed_on_as_they_come() -> None:
    reading = parser("qwen")
    assert reading.feed('Hm.<tool_call>{"name": "weather", "argu') == [Content("Hm.")]
    assert reading.feed('ments": {"ci') == [CallStart(0, "weather"), CallArguments(0, '{"ci')]
    assert reading.feed('ty": "x') == [CallArguments(0, 'ty": "x')]
    assert reading.feed('"}}</tool_call>') == [CallArguments(0, '"}')]
    assert reading.end() == []


def test_text_is_held_only_while_it_may_become_a_call() -> None:
    reading = parser("llama3")
    assert reading.feed('{"na') == []
    assert reading.feed('me": "Alice"') == [Content('{"name": "Alice"')]
    assert reading.feed(" <|py") == []
    assert reading.feed("x") == [Content(" <|pyx")]


PIECES = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        ";",
        ",",
        "[",
        "]",
        "{",
        "}",
    ),
    *(
        '"name"',
        ": ",
        '"weather"',
        '"arguments"',
        '"parameters"',
        '{"name": "weather", "arguments": ',
        '{"a": "b"}',
        "weather",
    ),
    *(
        "<function=",
        "weather>",
        "<parameter=",
        "city>",
        "</parameter>",
        "</function>",
        "\n",
        " ",
        "é🙂",
        "\\",
        '"',
        "null",
        "7",
        "text",
    ),
)


@pytest.mark.parametrize("name", list(TOOL_PARSERS))
def test_any_mixture_of_marks_reads_the_same_however_it_is_split(name: ToolParserName) -> None:
    for seed in range(400):
        mixture = random.Random(seed)
        text = "".join(mixture.choice(PIECES) for _ in range(mixture.randrange(1, 24)))
        whole = read_in_parts(parser(name), [text])
        assert read_in_parts(parser(name), list(text)) == whole, f"seed {seed}"
        assert read_in_parts(parser(name), split_at_random(text, seed)) == whole, f"seed {seed}"
        if not any(isinstance(event, CallStart) for event in whole):
            assert whole == [Content(text)], f"seed {seed}"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("llama3", '{"name": "weather", "parameters": ', "}"),
        ("qwen", '<tool_call>{"name": "weather", "arguments": ', "}</tool_call>"),
        ("mistral", "[TOOL_CALLS]weather[ARGS]", ""),
    ],
)
def test_any_json_object_comes_out_byte_for_byte(name: ToolParserName, before: str, after: str) -> None:
    for seed in range(100):
        arguments = json.dumps({"v": any_value(random.Random(seed), 4)}, ensure_ascii=seed % 2 == 0)
        text = before + arguments + after
        assert read_in_parts(parser(name), split_at_random(text, seed)) == [
            CallStart(0, "weather"),
            CallArguments(0, arguments),
        ], f"seed {seed}"


def any_value(chance: random.Random, depth: int) -> object:
    texts = ("", '"', "\\", "}", "]", "{[", "é", "\u2028", "🙂", '\\"', "</tool_call>", "<tool_call>", "[TOOL_CALLS]")
    match chance.randrange(7 if depth else 5):
        case 0:
            return chance.choice((True, False, None))
        case 1:
            return chance.choice((0, -1, 1.5, 1e300))
        case 5:
            return [any_value(chance, depth - 1) for _ in range(chance.randrange(4))]
        case 6:
            return {chance.choice(texts) + str(i): any_value(chance, depth - 1) for i in range(chance.randrange(4))}
        case _:
            return "".join(chance.choice(texts) for _ in range(chance.randrange(5)))
