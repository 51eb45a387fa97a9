"""Streamed text against the tokenizer's own, with real tokenizers of each family. A failure prints its seed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tasks.serving.detokenize import MAX_TOKENS, Detokenizer
from tasks.serving.tokenizer import Tokenizer
from tasks.serving.tokens import Prompts
from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.small_tokenizers import (
    CORPUS,
    FAMILIES,
    Adapter,
    byte_level,
    byte_level_cleaned,
    metaspace,
    sentencepiece,
    standin,
    wordpiece,
)

Family = Callable[[], Adapter]

STRINGS = int(os.environ.get("ENGINEHOUSE_TEST_STRINGS", "150"))
OTHERS = (sentencepiece, metaspace, wordpiece)
ATOMS = (
    *(word for text in CORPUS for word in text.split(" ")),
    *("👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "😀", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "\U0001f9ff"),
    *("漢字", "你好", "한국어", "ガギグ", "𠮷", "अनुच्छेद", "ไทย", "עברית", "አማርኛ"),
    *("é", "e\u0301", "a\u0308\u0323", "Z\u0351\u036b\u0343", "\u0301"),
    *("\x00", "\x07", "\x1b[0m", "\x7f", "\u200b", "\u2028", "\ufeff", "\ufffd", "\ufffd\ufffd", "\t", "\r\n", "\n\n"),
    *(" ", "  ", "    ", " .", " ,", " ?", " '", " ' ", " n't", " 'm", " 've", "<0x41>", "▁", "##", "</s>", "<s>"),
)


def random_text(chance: random.Random) -> str:
    atoms = (chance.choice(ATOMS) for _ in range(chance.randint(0, 40)))
    text = chance.choice(("", " ", "x")).join(atoms)
    return " " * chance.choice((0, 0, 1, 3)) + text + " " * chance.choice((0, 0, 1, 3))


def groups(ids: Sequence[int], chance: random.Random, most: int) -> list[list[int]]:
    cut, rest = list[list[int]](), list(ids)
    while rest:
        size = chance.randint(1, most)
        cut.append(rest[:size])
        del rest[:size]
    return cut


def streamed(tokenizer: Tokenizer, parts: Sequence[Sequence[int]], *, skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.push(part) for part in parts), detokenizer.flush()]


def check(tokenizer: Tokenizer, ids: Sequence[int], chance: random.Random, seed: object) -> None:
    for skip in (True, False):
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        for most in (1, 7):
            pieces = streamed(tokenizer, groups(ids, chance, most), skip=skip)
            assert "".join(pieces) == whole, f"seed {seed!r}, skip {skip}, groups up to {most}"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_of_encoded_text_are_the_whole(family: Family) -> None:
    tokenizer = family()
    for number in range(STRINGS):
        seed = f"{family.__name__} {number}"
        chance = random.Random(seed)
        check(tokenizer, tokenizer.encode(random_text(chance), add_special_tokens=False), chance, seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_of_whatever_a_model_says_are_the_whole(family: Family) -> None:
    """Any tokens: broken characters, special tokens, and numbers beyond the vocabulary, which engines pad."""
    tokenizer = family()
    for number in range(STRINGS // 2):
        seed = f"any {family.__name__} {number}"
        chance = random.Random(seed)
        some = [chance.randrange(tokenizer.size + 9) for _ in range(chance.choice((3, 30, 600)))]
        check(tokenizer, chance.choices(some, k=chance.randint(0, 400)), chance, seed)


CLEANED = {"clean_up_tokenization_spaces": True}
FORCED = CLEANED | {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
"""What `CLEANED` alone does to a BPE until transformers 4."""


@pytest.mark.parametrize("strings", [40, pytest.param(STRINGS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("family", "changes"),
    [(byte_level, {}), (byte_level, FORCED), *((each, how) for each in OTHERS for how in ({}, CLEANED))],
)
def test_tokenizers_of_transformers_are_streamed_as_they_decode(
    family: Family, changes: dict[str, bool], strings: int, tmp_path: Path
) -> None:
    folder = write_tokenizer(tmp_path / "tokenizer", family().tokenizer, **changes)
    tokenizer = Prompts(folder, chat_template=False, most_tokens=1).tokenizer
    size = family().size
    assert tokenizer.convert_ids_to_tokens(size + 9) is None
    for number in range(strings):
        seed = f"transformers {family.__name__} {changes} {number}"
        chance = random.Random(seed)
        ids = tokenizer.encode(random_text(chance), add_special_tokens=False)
        check(tokenizer, ids, chance, seed)
        check(tokenizer, [chance.randrange(size + 9) for _ in range(chance.randint(0, 60))], chance, seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_of_spaces_and_punctuation_are_the_whole(family: Family) -> None:
    tokenizer = family()
    for number in range(STRINGS):
        seed = f"punctuation {family.__name__} {number}"
        chance = random.Random(seed)
        text = "".join(chance.choices(" 'ntmsver.x", weights=(9, 5, *[1] * 9), k=chance.randint(1, 200)))
        ids = [token for letter in text for token in tokenizer.encode(letter, add_special_tokens=False)]
        check(tokenizer, ids, chance, seed)


@pytest.mark.parametrize("family", [byte_level, sentencepiece, metaspace, standin])
def test_a_character_comes_out_whole_or_not_yet(family: Family) -> None:
    tokenizer = family()
    for text in ("a👩‍👩‍👧‍👦b", "漢字 and 😀 x", "e\u0301 አማርኛ."):
        pieces = streamed(tokenizer, [[token] for token in tokenizer.encode(text, add_special_tokens=False)])
        assert "\ufffd" not in "".join(pieces[:-1])
        assert "".join(pieces) == text


def test_what_is_certain_is_not_held_back() -> None:
    """One token late at most, for text whose characters are whole tokens."""
    tokenizer = byte_level()
    text = "How do I count to nine in French?  un, deux, trois, quatre, cinq, six"
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tokenizer, [[token] for token in ids])
    for count in range(1, len(ids)):
        before = tokenizer.decode(ids[: count - 1], skip_special_tokens=True)
        assert len("".join(pieces[:count])) >= len(before), pieces[:count]


def test_a_broken_character_is_what_the_tokenizer_makes_of_it() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("hi 😀", add_special_tokens=False)[:-1]
    pieces = streamed(tokenizer, [[token] for token in ids])
    assert pieces[-1] == "\ufffd"
    assert "".join(pieces) == "hi \ufffd"


def test_a_bad_byte_spoils_the_run_before_it_as_in_the_whole() -> None:
    tokenizer = sentencepiece()
    ids = [tokenizer.tokenizer.token_to_id(token) for token in ("▁", "<0x0A>", "<s>", "<0xF0>", "▁")]
    assert streamed(tokenizer, [[token] for token in ids]) == ["", "", "", "", "\ufffd\ufffd", " "]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_after_many_special_tokens_is_not_taken_for_the_first(family: Family) -> None:
    tokenizer = family()
    word = tokenizer.encode(" the", add_special_tokens=False)
    special = next(token for token in range(tokenizer.size) if not tokenizer.decode([token], skip_special_tokens=True))
    ids = [*word, *[special] * 2 * MAX_TOKENS, *word]
    assert "".join(streamed(tokenizer, [[token] for token in ids])) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_space_waits_for_the_full_stop_that_takes_it() -> None:
    tokenizer = byte_level_cleaned()
    ids = tokenizer.encode("x .", add_special_tokens=False)
    assert "".join(streamed(tokenizer, [[token] for token in ids])) == "x."


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["the dog. ", " ", ".", "😀", "</s>", "漢", "n", "'", "-"])
def test_the_cost_of_a_token_does_not_grow_with_the_answer(family: Family, text: str) -> None:
    tokenizer = family()
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = ids * (3000 // len(ids)) if ids else []
    tokenizer.decoded = 0
    streamed(tokenizer, [[token] for token in ids])
    assert tokenizer.decoded <= 2 * MAX_TOKENS * len(ids) + len(ids)
