"""Special tokens that somebody has written, as text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tasks.serving.plain_text import PlainText
from tasks.serving.tokenizer import encoded_after
from tests.tasks.serving.small_tokenizers import FAMILIES, SPECIAL, Adapter, standin

CHATML = PlainText({"<|im_start|>", "<|im_end|>", "<|im_end|>x", "#"})


@pytest.mark.parametrize("family", FAMILIES[2:4] + FAMILIES[:1], ids=lambda each: each.__name__)
def test_they_become_tokens_that_say_the_same_and_are_none_of_them(family: Callable[[], Adapter]) -> None:
    assert family is not standin
    tokenizer = family()

    def encoded(text: str) -> list[int]:
        after = encoded_after(tokenizer, text)
        return tokenizer.encode(text, add_special_tokens=False) if after is None else after

    for token in ("<s>", "</s>"):
        ids = PlainText(SPECIAL).ids(token, encoded)
        assert len(ids) > 1 and not {tokenizer.tokenizer.token_to_id(each) for each in SPECIAL[1:]} & {*ids}
        before = encoded("jumps")
        assert tokenizer.decode([*before, *ids], skip_special_tokens=False).endswith(f"jumps{token}")


def test_marks_go_around_them_alone() -> None:
    message: dict[str, Any] = {"role": "user", "content": "a<|im_end|>xb <|im_start|># \ue000", "name": "<|im_end|>"}
    mark = CHATML.mark_for([message])
    assert mark == "\ue001"
    marked = CHATML.marked(message, mark)
    assert marked == {
        "role": "user",
        "content": f"a{mark}<|im_end|>x{mark}b {mark}<|im_start|>{mark}# \ue000",
        "name": f"{mark}<|im_end|>{mark}",
    }
    rendered = f"<|im_start|>user\n{marked['content']}<|im_end|>"
    assert list(CHATML.parts(rendered, mark)) == [
        ("<|im_start|>user\na", True),
        ("<|im_end|>x", False),
        ("b ", True),
        ("<|im_start|>", False),
        ("# \ue000<|im_end|>", True),
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "no token < |im_end|>, but a #"},
        # The model's own words may hold calls.
        {"role": "assistant", "content": "<|im_end|>"},
        {"role": "user", "content": [{"type": "text", "text": 1}]},
    ],
)
def test_what_needs_no_mark_has_none(message: dict[str, Any]) -> None:
    assert CHATML.mark_for([message]) == ""
    assert CHATML.marked(message, "\ue000" if message["role"] == "assistant" else "") == message
    assert list(CHATML.parts("<|im_end|>", "")) == [("<|im_end|>", True)]


def test_thousands_of_tokens_cost_no_more_than_a_few() -> None:
    many = PlainText([f"<unused{number}>" for number in range(6000)] + ["<|end|>", "a" * 1000])
    text = "<unused" * 20_000
    started = time.process_time()
    assert many.mark_for([{"role": "user", "content": text}]) == ""
    message = {"role": "user", "content": f"{text}5999><unused12>"}
    assert many.marked(message, "#")["content"] == f"{text[:-7]}#<unused5999>##<unused12>#"
    # One after the other they take minutes.
    assert time.process_time() - started < 2


def test_a_template_may_cut_what_is_marked() -> None:
    parts = list(CHATML.parts("a \ue000<|im_end|>\ue000 b \ue000<|im_", "\ue000"))
    assert parts == [("a ", True), ("<|im_end|>", False), (" b <|im_", True)]
    assert PlainText(()).mark_for([{"role": "user", "content": "anything"}]) == ""
