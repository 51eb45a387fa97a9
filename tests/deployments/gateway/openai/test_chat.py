"""What the body of a chat becomes, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from deployments.gateway.openai.chat import ChatRequest, parse_chat
from deployments.gateway.openai.errors import ApiError
from deployments.gateway.openai.generation import Generation
from tasks.serving.contract import MAX_WORD_CHARACTERS
from tasks.targets.parsers import ModelParsers

USER: dict[str, Any] = {"role": "user", "content": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str = "weather", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **fields}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def parse(parsers: ModelParsers = ModelParsers("qwen"), /, **fields: Any) -> ChatRequest:  # noqa: B008
    return parse_chat({"model": "m", "messages": [USER], **fields}, parsers)


def changed(**fields: Any) -> dict[str, object]:
    """What of the only generation is not as it is without these fields."""
    (plain,), (generation,) = parse().generations, parse(**fields).generations
    before = asdict(plain)
    return {name: value for name, value in asdict(generation).items() if value != before[name]}


def refused(parsers: ModelParsers = ModelParsers("qwen"), /, **fields: Any) -> str | None:  # noqa: B008
    with pytest.raises(ApiError) as caught:
        parse(parsers, **fields)
    assert caught.value.status == 400
    assert caught.value.param is None or len(caught.value.message) < 700
    return caught.value.param


def test_a_chat_without_anything_else() -> None:
    request = parse()
    assert (request.model, request.stream, request.include_usage, request.log_probs) == ("m", False, False, False)
    assert request.generations == (Generation(messages='[{"role": "user", "content": "Hello"}]'),)
    assert request.form.tool_parser is None and request.form.think_parser is None


def test_sampling_fields_have_the_names_of_the_contract() -> None:
    assert changed(
        max_completion_tokens=7,
        min_tokens=2,
        temperature=0,
        top_p=0.5,
        top_k=40,
        seed=3,
        presence_penalty=-1.5,
        frequency_penalty=2,
        repetition_penalty=1.1,
        stop=["a", "", "b"],
        bad_words=["c"],
        stream=True,
        logprobs=True,
        chat_template_kwargs={"enable_thinking": False},
    ) == {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "seed": 3,
        "presence_penalty": -1.5,
        "frequency_penalty": 2,
        "repetition_penalty": 1.1,
        "stop_words": ("a", "b"),
        "bad_words": ("c",),
        "stream": True,
        "return_log_probs": True,
        "return_output_tokens": True,
        "chat_template_kwargs": '{"enable_thinking": false}',
    }
    assert changed(stop="x" * MAX_WORD_CHARACTERS) == {"stop_words": ("x" * MAX_WORD_CHARACTERS,)}
    assert changed(max_tokens=5, max_completion_tokens=5) == {"max_tokens": 5}
    assert changed(top_k=-1) == {"top_k": 0}
    assert changed(nvext={"top_k": 5, "repetition_penalty": 2}) == {"top_k": 5, "repetition_penalty": 2}


def test_each_choice_is_a_request_with_the_next_seed() -> None:
    assert [each.seed for each in parse(n=3, seed=7).generations] == [7, 8, 9]
    assert [each.seed for each in parse(n=2).generations] == [None, None]
    # OpenAI's seeds have a sign, those of the contract have none.
    assert [each.seed for each in parse(n=2, seed=-1).generations] == [2**64 - 1, 0]


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {}, "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": 1},
        {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "logprobs": False},
        {"best_of": 1, "echo": False, "suffix": None, "min_p": 0.0, "length_penalty": 1, "stop_token_ids": []},
        {"response_format": {"type": "text"}, "modalities": ["text"], "functions": None, "reasoning_effort": None},
        {"skip_special_tokens": True, "stop": None, "stop_token_ids": None, "stream_options": None, "nvext": None},
        {"tool_choice": "none", "seed": None, "temperature": None, "include_reasoning": True},
    ],
)
def test_what_asks_for_nothing_changes_nothing(fields: Mapping[str, Any]) -> None:
    assert changed(**fields) == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"foo": None}, "foo"),
        ({"x" * 100_000: 1}, "x" * 64),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stop_token_ids": [2]}, "stop_token_ids"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"echo": True}, "echo"),
        ({"store": True}, "store"),
        ({"best_of": True}, "best_of"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"user": 5}, "user"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ["x" * MAX_WORD_CHARACTERS, "y"]}, "stop"),
        ({"bad_words": ["x" * (MAX_WORD_CHARACTERS + 1)]}, "bad_words"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"nvext": {"greed": 1}}, "nvext.greed"),
        ({"nvext": {"top_k": 5}, "top_k": 5}, "nvext.top_k"),
        ({"nvext": [5]}, "nvext"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ],
)
def test_fields_are_refused_by_name(fields: Mapping[str, Any], param: str) -> None:
    assert refused(**fields) == param


def test_messages_are_those_of_the_contract() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    parts = [{"type": "text", "text": "é"}, {"type": "text", "text": "🙂"}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "system", "content": "Be short.", "name": "s"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "21", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Warm.", "reasoning_content": "21 is warm."},
    ]
    (generation,) = parse(messages=messages).generations
    assert generation.messages is not None and "é🙂" not in generation.messages and "é" in generation.messages
    expected = [*messages]
    expected[3] = {"role": "assistant", "tool_calls": [call]}
    assert json.loads(generation.messages) == expected
    # As the `openai` client sends an answer back.
    echoed: dict[str, Any] = {
        "refusal": None,
        "audio": None,
        "function_call": None,
        "annotations": [],
        "tool_calls": None,
    }
    (generation,) = parse(messages=[{"role": "assistant", "content": "Hi", **echoed}]).generations
    assert generation.messages == '[{"role": "assistant", "content": "Hi"}]'
    (generation,) = parse(messages=[{"role": "assistant", "tool_calls": [{"index": 0, **call}]}]).generations
    assert generation.messages is not None and json.loads(generation.messages)[0]["tool_calls"] == [call]


WRONG_MESSAGES: list[tuple[Any, str]] = [
    ({"role": "robot", "content": "x"}, "[1].role"),
    ({"role": "function", "content": "x", "name": "f"}, "[1].role"),
    ({"content": "x"}, "[1].role"),
    ({"role": "user"}, "[1].content"),
    ({"role": "user", "content": None}, "[1].content"),
    ({"role": "user", "content": {}}, "[1].content"),
    ({"role": "user", "content": []}, "[1].content"),
    ({"role": "user", "content": "x", "mood": "good"}, "[1].mood"),
    ({"role": "user", "content": [{"type": "text"}]}, "[1].content[0].text"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, "[1].content[0].type"),
    ({"role": "tool", "content": "x"}, "[1].tool_call_id"),
    ({"role": "assistant", "content": "x", "refusal": "no"}, "[1].refusal"),
    ({"role": "assistant", "content": "x", "annotations": [{}]}, "[1].annotations"),
    ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, "[1].tool_calls[0].type"),
    (5, "[1]"),
]


@pytest.mark.parametrize(("message", "param"), WRONG_MESSAGES)
def test_messages_are_refused_by_name(message: Any, param: str) -> None:
    assert refused(messages=[USER, message]) == f"messages{param}"


def test_messages_are_some_and_not_too_many() -> None:
    assert refused(messages=[]) == "messages"
    assert refused(messages=[USER] * 2049) == "messages"
    assert refused(messages="Hello") == "messages"
    assert len(parse(messages=[USER] * 2048).generations) == 1


@pytest.mark.parametrize(
    ("fields", "kind", "guide"),
    [
        ({"response_format": {"type": "json_object"}}, "json", ""),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
        ({"guided_regex": "[a-z]+"}, "regex", "[a-z]+"),
        ({"guided_grammar": 'root ::= "a"'}, "ebnf_grammar", 'root ::= "a"'),
        ({"guided_choice": ["yes", 'n"o\n']}, "ebnf_grammar", 'root ::= "yes" | "n\\U00000022o\\U0000000A"'),
        ({"structured_outputs": {"regex": "a"}}, "regex", "a"),
        ({"nvext": {"guided_json": SCHEMA}}, "json_schema", json.dumps(SCHEMA)),
    ],
)
def test_guides(fields: Mapping[str, Any], kind: str, guide: str) -> None:
    expected: dict[str, object] = {"guided_decoding_guide_type": kind, "guided_decoding_guide": guide}
    assert changed(**fields) == {name: value for name, value in expected.items() if value}


def test_response_format_with_a_schema() -> None:
    named_schema = {"name": "n", "schema": SCHEMA, "strict": True, "description": "d"}
    assert changed(response_format={"type": "json_schema", "json_schema": named_schema}) == {
        "guided_decoding_guide_type": "json_schema",
        "guided_decoding_guide": json.dumps(SCHEMA),
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "http://x"}}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"guided_regex": "(" * 100}, "guided_regex"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_json": "no schema"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"json": SCHEMA}, "guided_json": SCHEMA}, "structured_outputs.json"),
        ({"response_format": {"type": "json_object"}, "tools": [tool()]}, "response_format"),
    ],
)
def test_guides_are_refused_by_name(fields: Mapping[str, Any], param: str) -> None:
    assert refused(**fields) == param


def test_tools_are_given_to_the_template_and_to_the_parser() -> None:
    tools = [tool(description="of a city", strict=False), {"type": "function", "function": {"name": "now"}}]
    request = parse(tools=tools)
    (generation,) = request.generations
    assert generation.tools is not None and json.loads(generation.tools) == [
        tool(description="of a city"),
        {"type": "function", "function": {"name": "now"}},
    ]
    assert generation.guided_decoding_guide_type == ""
    assert request.form.tool_parser is not None and request.form.call_reason == "tool_calls"


def test_tool_choice_none_keeps_the_tools_from_the_model() -> None:
    request = parse(ModelParsers(), tools=[tool()], tool_choice="none", response_format={"type": "json_object"})
    assert request.generations[0].tools is None and request.form.tool_parser is None
    assert request.generations[0].guided_decoding_guide_type == "json"


@pytest.mark.parametrize(("parser", "key"), [("llama3", "parameters"), ("qwen", "arguments"), (None, "arguments")])
def test_tool_choice_required_guides_to_a_call_of_one_of_them(parser: Any, key: str) -> None:
    fields = {"tools": [tool("a", strict=True), tool("b")], "tool_choice": "required", "parallel_tool_calls": False}
    request = parse(ModelParsers(parser), **fields)
    (generation,) = request.generations
    assert generation.guided_decoding_guide_type == "json_schema" and generation.tools is not None
    assert json.loads(generation.guided_decoding_guide) == {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [name]}, key: SCHEMA},
                "required": ["name", key],
                "additionalProperties": False,
            }
            for name in ("a", "b")
        ]
    }
    assert request.form.tool_parser is not None and request.form.call_reason == "tool_calls"


def test_references_of_a_tool_lead_to_the_same_parts_of_the_guide() -> None:
    properties = {
        "self": {"$ref": "#"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "const": {"$ref": "#/$defs/item"},
        "$ref": {"type": "string", "default": {"$ref": "#/no/reference"}},
    }
    schema = {"type": "object", "properties": properties, "$defs": {"item": {"type": "integer"}}}
    (generation,) = parse(tools=[tool("a", parameters=schema)], tool_choice="required").generations
    guide = json.loads(generation.guided_decoding_guide)
    assert guide["properties"]["arguments"] == {"$ref": "#/$defs/a"}
    moved = guide["$defs"]["a"]
    assert moved["properties"] == {
        "self": {"$ref": "#/$defs/a"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/a/$defs/item"}},
        "const": {"$ref": "#/$defs/a/$defs/item"},
        "$ref": {"type": "string", "default": {"$ref": "#/no/reference"}},
    }
    assert moved["$defs"] == {"item": {"type": "integer"}}


def test_a_named_tool_guides_to_its_arguments() -> None:
    request = parse(ModelParsers(), tools=[tool("a"), tool("b", parameters=None)], tool_choice=named("a"))
    assert json.loads(request.generations[0].guided_decoding_guide) == SCHEMA
    assert request.form.tool_parser is not None and request.form.call_reason == "stop"
    request = parse(tools=[tool("b", parameters=None)], tool_choice=named("b"))
    assert json.loads(request.generations[0].guided_decoding_guide) == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("a"), tool("a")]}, "tools[1].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [tool(str(number)) for number in range(129)]}, "tools"),
        ({"tools": [tool(parameters="x")]}, "tools[0].function.parameters"),
        ({"tools": [tool(strict=True)]}, "tools[0].function.strict"),
        ({"tools": [tool()], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": named("other")}, "tool_choice.function.name"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [tool(parameters={"$ref": "http://x"})], "tool_choice": "required"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("a")}, "tool_choice"),
    ],
)
def test_tools_are_refused_by_name(fields: Mapping[str, Any], param: str) -> None:
    assert refused(**fields) == param


def test_a_model_without_a_tool_parser_can_only_be_forced_to_call() -> None:
    assert refused(ModelParsers(), tools=[tool()]) == "tools"
    assert parse(ModelParsers(), tools=[tool()], tool_choice="required").form.tool_parser is not None
