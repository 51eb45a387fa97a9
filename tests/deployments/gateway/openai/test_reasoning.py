"""Reasoning apart from content, whole and in parts."""

from __future__ import annotations

import random

import pytest

from deployments.gateway.openai.reasoning import ThinkParser
from deployments.gateway.openai.tool_formats.events import Content, Event, Reasoning, joined
from tests.deployments.gateway.openai.tool_formats.reading import split_at_random


def read(text: str) -> list[Event]:
    def in_parts(parts: list[str]) -> list[Event]:
        parser = ThinkParser()
        events = [event for part in parts for event in parser.feed(part)]
        return joined([*events, *parser.end()])

    whole = in_parts([text])
    assert in_parts(list(text)) == whole
    for seed in range(20):
        assert in_parts(split_at_random(text, seed)) == whole, f"seed {seed}"
    return whole


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nWell, 1 < 2.\n</think>\n\nYes.\n", "Well, 1 < 2.", "Yes.\n"),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("\n<think>a</think>b</think><think>c", "a", "b</think><think>c"),
        ("<think>a</thin </think>", "a</thin", ""),
        ("<think>cut off </thi", "cut off </thi", ""),
        ("<think>", "", ""),
        ("<think>\n\nWell.\n\nSo:\n</think>\n\n Yes.", "Well.\n\nSo:", "Yes."),
        ("<think>\n</think>Yes.", "", "Yes."),
    ],
)
def test_the_tag_is_in_the_answer(text: str, reasoning: str, content: str) -> None:
    assert read(text) == joined([Reasoning(reasoning), Content(content)])


@pytest.mark.parametrize(
    "text", ["Yes. <think>x</think>", "\n Yes.", "<thin", "<thing>", "</think>", " " * 100 + "<think>x", ""]
)
def test_without_the_tag_all_is_content(text: str) -> None:
    assert read(text) == joined([Content(text)])


def test_any_mixture_reads_the_same_however_it_is_split() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        pieces = ("<think>", "</think>", "<", "think", ">", "/", "\n", " " * 70, "a", "é")
        read("".join(chance.choice(pieces) for _ in range(chance.randrange(12))))
