"""Answers to a completion, whole and as a stream."""

from __future__ import annotations

import pytest

from deployments.gateway.openai.errors import ApiError
from deployments.gateway.openai.generation import GenerationFailed, Piece
from tests.deployments.gateway.openai.answering import completion, completion_events, pieces


def test_a_whole_answer() -> None:
    assert completion(
        pieces("a", "b"), pieces("c", reason="length"), pieces("d"), pieces(), prompt=["x", "y"], n=2
    ) == {
        "id": "chatcmpl-1",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "llama",
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            for index, (text, reason) in enumerate((("ab", "stop"), ("c", "length"), ("d", "stop"), ("", "stop")))
        ],
        # Two prompts, each counted once, and four answers.
        "usage": {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18},
    }


def test_a_stream() -> None:
    *chunks, usage, done = completion_events(
        pieces("a", "b", reason="stop_words"), stream_options={"include_usage": True}
    )
    assert done == "[DONE]" and usage["choices"] == [] and usage["object"] == "text_completion"
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
        for text, reason in (("a", None), ("b", None), ("", "stop"))
    ]
    assert all(chunk["usage"] is None for chunk in chunks)


def test_log_probs_say_where_each_token_begins() -> None:
    given = [
        Piece("He", 5, 1, (-0.5,), (b"He",)),
        Piece("lé", 5, 2, (-1.0, -2.0), (b"l\xc3", b"\xa9")),
        Piece("!", 5, 1, (-0.25,), (b"!",), (((b"?", -0.125),),), finish_reason="length"),
    ]
    expected = {
        "tokens": ["He", "l\ufffd", "\ufffd", "!"],
        "token_logprobs": [-0.5, -1.0, -2.0, -0.25],
        "text_offset": [0, 2, 4, 4],
        "top_logprobs": [{"He": -0.5}, {"l\ufffd": -1.0}, {"\ufffd": -2.0}, {"?": -0.125, "!": -0.25}],
    }
    assert completion(given, logprobs=0)["choices"][0]["logprobs"] == expected
    *chunks, _ = completion_events(given, logprobs=0)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for part in parts for value in part[name]] == expected[name]


def test_failures() -> None:
    failed = GenerationFailed("deadline", "after 60 s")
    for answer in (completion, completion_events):
        with pytest.raises(ApiError) as caught:
            answer([failed])
        assert caught.value.status == 504
        with pytest.raises(ApiError) as caught:
            answer([])
        assert caught.value.status == 500
    *_, last = completion_events([Piece("a", 5, 1), failed])
    assert last["error"]["code"] == "deadline_exceeded"
