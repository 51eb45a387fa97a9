"""Answers to a chat, whole and as a stream; both must say the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from deployments.gateway.openai.errors import ApiError
from deployments.gateway.openai.generation import FinishReason, GenerationFailed, Piece
from tasks.targets.parsers import ModelParsers
from tests.deployments.gateway.openai.answering import chat, chat_events, pieces

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]
QWEN = ModelParsers("qwen", "think")
CALLS = (
    *("<think>", "\n", "Look", " it up.", "\n</th", "ink>", "\n\n", "One moment.", "\n<tool_", "call>\n"),
    *('{"name": "weather", ', '"arguments": {"ci', 'ty": "Paris', '"}}', "\n</tool_call>\n<tool_call>"),
    *('{"name": "time"', ', "arguments": {}}', "</tool_call>"),
)


def choices(events: list[Any]) -> list[Any]:
    assert all(len(event["choices"]) == 1 for event in events[:-1])
    return [event["choices"][0] for event in events[:-1]]


def test_a_whole_answer() -> None:
    assert chat(pieces("Hel", "lo é", "🙂\u2028")) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "llama",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello é🙂\u2028", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
    }
    assert chat(pieces())["choices"][0]["message"]["content"] == ""


def test_a_stream() -> None:
    events = chat_events(pieces("Hel", "", "lo\u2028"))
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        assert {name: event[name] for name in event if name != "choices"} == {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": "llama",
        }
    assert choices(events) == [
        {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        for delta, reason in (
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hel"}, None),
            ({"content": "lo\u2028"}, None),
            ({}, "stop"),
        )
    ]


def test_usage_comes_after_everything_else_and_is_null_before() -> None:
    events = chat_events(pieces("a", "b"), pieces("c"), stream_options={"include_usage": True})
    *chunks, usage, done = events
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize(("reason", "expected"), [("stop", "stop"), ("stop_words", "stop"), ("length", "length")])
def test_why_an_answer_ended(reason: FinishReason, expected: str) -> None:
    assert chat(pieces("a", reason=reason))["choices"][0]["finish_reason"] == expected
    assert choices(chat_events(pieces("a", reason=reason)))[-1]["finish_reason"] == expected


def test_choices_come_as_they_are_made() -> None:
    events = chat_events(pieces("a", "b", "c"), pieces("x"))
    numbers = [choice["index"] for choice in choices(events)]
    assert numbers != sorted(numbers) and set(numbers) == {0, 1}
    texts = ["", ""]
    for choice in choices(events):
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["abc", "x"]
    answer = chat(pieces("a", "b", "c"), pieces("x"))
    assert [choice["message"]["content"] for choice in answer["choices"]] == texts
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


def test_calls_and_reasoning_of_a_whole_answer() -> None:
    (choice,) = chat(pieces(*CALLS), parsers=QWEN, tools=TOOLS)["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("Look it up.", "One moment.")
    assert choice["finish_reason"] == "tool_calls"
    weather, time = message["tool_calls"]
    assert (weather["type"], weather["function"]) == ("function", {"name": "weather", "arguments": '{"city": "Paris"}'})
    assert time["function"] == {"name": "time", "arguments": "{}"}
    assert weather["id"].startswith("call_") and weather["id"] != time["id"]


def test_calls_and_reasoning_of_a_stream_are_the_same() -> None:
    (whole,) = chat(pieces(*CALLS), parsers=QWEN, tools=TOOLS)["choices"]
    deltas = [choice["delta"] for choice in choices(chat_events(pieces(*CALLS), parsers=QWEN, tools=TOOLS))]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == whole["message"][name]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    for index, expected in enumerate(whole["message"]["tool_calls"]):
        first, *others = [call for call in calls if call["index"] == index]
        begun = {"name": expected["function"]["name"], "arguments": ""}
        assert first == {"index": index, "id": expected["id"], "type": "function", "function": begun}
        assert "".join(call["function"]["arguments"] for call in others) == expected["function"]["arguments"]
        assert all(call == {"index": index, "function": call["function"]} for call in others)
    # The arguments are not held until they are whole.
    assert [call["function"]["arguments"] for call in calls if call["index"] == 0] == ["", '{"ci', 'ty": "Paris', '"}']


def test_content_is_null_where_there_are_only_calls() -> None:
    (choice,) = chat(pieces('{"name": "time", "arguments": {}}'), parsers=QWEN, tools=TOOLS)["choices"]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "texts", "reason", "expected"),
    [
        ("required", ('{"name": "time", "argum', 'ents": {"z": 1}}'), "stop", "tool_calls"),
        ({"type": "function", "function": {"name": "time"}}, ('{"z"', ": 1}"), "stop", "stop"),
        ({"type": "function", "function": {"name": "time"}}, ('{"z"', ": 1}"), "length", "length"),
    ],
)
def test_forced_calls(choice: Any, texts: Sequence[str], reason: FinishReason, expected: str) -> None:
    for parsers in (ModelParsers(), ModelParsers("qwen", "think")):
        (answer,) = chat(pieces(*texts, reason=reason), parsers=parsers, tools=TOOLS, tool_choice=choice)["choices"]
        (call,) = answer["message"]["tool_calls"]
        assert call["function"] == {"name": "time", "arguments": '{"z": 1}'}
        assert (answer["finish_reason"], answer["message"]["content"]) == (expected, None)


def test_mistral_gets_ids_that_its_templates_take() -> None:
    text = "[TOOL_CALLS]time[ARGS]{}[TOOL_CALLS]time[ARGS]{}"
    answer = chat(pieces(text), pieces(text), parsers=ModelParsers("mistral"), tools=TOOLS)
    ids = [call["id"] for choice in answer["choices"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 4 and all(len(each) == 9 and each.isalnum() for each in ids)


def test_an_answer_that_begins_inside_its_reasoning() -> None:
    parsers = ModelParsers(reasoning_parser="think")
    (choice,) = chat(pieces("<think>\nHm", ".\n</think>\n", "Yes."), parsers=parsers)["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Hm.", "Yes.")
    for fields in ({"chat_template_kwargs": {"enable_thinking": False}}, {"response_format": {"type": "json_object"}}):
        (choice,) = chat(pieces('{"a": 1}'), parsers=parsers, **fields)["choices"]
        assert choice["message"] == {"role": "assistant", "content": '{"a": 1}', "refusal": None}


def test_log_probs() -> None:
    given = [
        Piece("He", 5, 1, (-0.5,), (b"He",), (((b"He", -0.5), (b"Ha", -3.0)),)),
        Piece("", 5, 1, (-0.25,), (b"\xc3",), (((b"\xc3", -0.25), (b"", float("-inf"))),)),
        Piece("é!", 5, 2, (-1.0, float("-inf")), (b"\xa9", b"!"), ((), ())),
        Piece("", 5, 1, (-0.125,), (b"<|end|>",), finish_reason="stop"),
    ]
    expected = [("He", -0.5), ("\ufffd", -0.25), ("\ufffd", -1.0), ("!", -9999.0), ("<|end|>", -0.125)]
    (whole,) = chat(given, logprobs=True, top_logprobs=2)["choices"]
    tokens = whole["logprobs"]["content"]
    assert [(token["token"], token["logprob"]) for token in tokens] == expected
    assert tokens[2] == {"token": "\ufffd", "logprob": -1.0, "bytes": [169], "top_logprobs": []}
    assert tokens[0]["top_logprobs"][1] == {"token": "Ha", "logprob": -3.0, "bytes": [72, 97]}
    assert bytes(value for token in tokens[:4] for value in token["bytes"]).decode() == "Heé!"
    streamed = choices(chat_events(given, logprobs=True, top_logprobs=2))
    assert [token for choice in streamed if choice["logprobs"] for token in choice["logprobs"]["content"]] == tokens
    # The log probability of text that is held comes with the next chunk.
    held = [Piece("<tool", 5, 1, (-0.5,), (b"<tool",)), *pieces("x")]
    _, text, _ = choices(chat_events(held, logprobs=True, tools=TOOLS, parsers=ModelParsers("qwen")))
    assert text["delta"] == {"content": "<toolx"}
    assert [token["token"] for token in text["logprobs"]["content"]] == ["<tool"]


def test_a_failure_before_the_first_piece_has_its_status() -> None:
    for answer in (chat, chat_events):
        with pytest.raises(ApiError) as caught:
            answer([GenerationFailed("invalid", "'stop_words' are too long")])
        assert (caught.value.status, caught.value.param) == (400, "stop")
        with pytest.raises(ApiError) as caught:
            answer([])
        assert caught.value.status == 500


def test_a_failure_in_the_middle_is_told_and_ends_the_stream() -> None:
    given: list[Piece | Exception] = [Piece("a", 5, 1), GenerationFailed("unavailable", "the node is gone")]
    *begun, last = chat_events(given, stream_options={"include_usage": True})
    assert [event["choices"][0]["delta"] for event in begun] == [{"role": "assistant", "content": ""}, {"content": "a"}]
    error = {"message": "the node is gone", "type": "server_error", "param": None, "code": "unavailable"}
    assert last == {"error": error}
    with pytest.raises(ApiError) as caught:
        chat(given)
    assert caught.value.status == 503
    # An answer that just stops coming is not whole either.
    *_, last = chat_events([Piece("a", 5, 1)])
    assert last["error"]["code"] == "internal_error"
