"""Passages, and the places in them."""

from __future__ import annotations

import json

import pytest

from infra.errors import UsageError
from tasks.gates.agreement.passages import Passage, bundled, passages_of
from tasks.gates.sets import SetText


def test_the_bundled_passages_are_many_and_short() -> None:
    passages = bundled()
    assert len(passages) == 64 == len({passage.text for passage in passages})
    assert all(50 < len(passage.text) < 500 for passage in passages)
    assert all(len(passage.prefixes(4)) == 4 for passage in passages)


def test_prefixes_end_with_words_and_are_never_the_whole_text() -> None:
    passage = Passage("p", "One two three four five six seven eight nine ten")
    for count in range(1, 9):
        prefixes = passage.prefixes(count)
        assert 0 < len(prefixes) <= count
        for prefix in prefixes:
            rest = passage.text.removeprefix(prefix)
            assert rest.startswith(" ") and not prefix.endswith(" ")


def test_a_script_without_spaces_is_cut_where_it_falls() -> None:
    passage = Passage("p", "春になると川の両側に桜が咲きます" * 4)
    assert [len(prefix) for prefix in passage.prefixes(3)] == [16, 32, 48]


def test_a_text_of_one_character_has_no_place() -> None:
    assert Passage("p", "a").prefixes(4) == ()


def test_passages_are_lines_of_json_or_paragraphs() -> None:
    lines = "\n".join(json.dumps({"text": text}) for text in ("one", "two"))
    assert {passage.text for passage in passages_of(SetText("set", lines))} == {"one", "two"}
    assert {passage.text for passage in passages_of(SetText("set", "one\nmore\n\n \ntwo\n"))} == {"one\nmore", "two\n"}


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "one"}\n{"text": ',
        '{"text": "one"}\n[1]',
        '{"text": ""}',
        '{"name": "one"}',
        '{"text": "one", "name": 1}',
        '{"text": "one", "name": "a"}\n{"text": "two", "name": "a"}',
        json.dumps({"text": "x" * 20_001}),
    ],
)
def test_what_is_no_set_of_passages_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        passages_of(SetText("set", text))
    assert caught.value.code == "set-invalid"
