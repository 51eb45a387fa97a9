"""Words as sequences of tokens, with real tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tasks.serving.word_ids import word_ids
from tests.tasks.serving.small_tokenizers import FAMILIES, Adapter, byte_level, metaspace, sentencepiece, wordpiece

Family = Callable[[], Adapter]

WORDS = ("STOP", "User:", "\n\n", "</s>", "漢字", "😀", " END", "dog", ".")
TEXTS = ("{}", "the {}", "\n{}", "hello.{}", "the quick brown {}", "({}", "x\n\n{}")


def sequences(tokenizer: Adapter, *words: str) -> list[list[int]]:
    """The array read as the engine reads it: the end of each sequence up to the first -1."""
    ids, ends = word_ids(tokenizer, words)
    stops = [int(end) for end in ends if end >= 0]
    assert list(ends[len(stops) :]) == [-1] * (len(ends) - len(stops))
    assert not stops or stops[-1] == len(ids)
    return [ids[start:stop].tolist() for start, stop in zip([0, *stops], stops, strict=False)]


def holds(ids: Sequence[int], wanted: Sequence[Sequence[int]]) -> bool:
    return any(list(ids[at : at + len(sequence)]) == list(sequence) for sequence in wanted for at in range(len(ids)))


def test_the_form_of_tensorrt_llm() -> None:
    array = word_ids(byte_level(), ["\n\n", "x#"])
    newline, x, number, spaced_x = (byte_level().tokenizer.token_to_id(token) for token in ("Ċ", "x", "#", "Ġx"))
    assert array.dtype == np.int32
    assert array.tolist() == [[newline, newline, x, number, spaced_x, number], [2, 4, 6, -1, -1, -1]]


@pytest.mark.parametrize("words", [[], [""], ["", ""]])
def test_no_words_are_an_empty_array(words: list[str]) -> None:
    assert word_ids(byte_level(), words).shape == (2, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_found_wherever_text_ends_with_it(family: Family, word: str) -> None:
    tokenizer = family()
    wanted = sequences(tokenizer, word)
    for text in TEXTS:
        if word[0] in " \n." and "\n" in text + word:
            continue  # They melt into one token with what is before them.
        ids = tokenizer.encode(text.format(word), add_special_tokens=False)
        assert holds(ids, wanted), (text, ids, wanted)


@pytest.mark.parametrize("family", [byte_level, sentencepiece, metaspace])
@pytest.mark.parametrize("word", WORDS)
def test_a_sequence_is_found_in_no_text_without_the_word(family: Family, word: str) -> None:
    tokenizer = family()
    before = tokenizer.encode("x", add_special_tokens=False)
    for sequence in sequences(tokenizer, word):
        assert word in tokenizer.decode([*before, *sequence], skip_special_tokens=False)


def test_a_sequence_that_ends_with_another_is_left_out() -> None:
    tokenizer = sentencepiece()
    for sequence in (found := sequences(tokenizer, "STOP", "dog")):
        assert sum(sequence[-len(other) :] == other for other in found) == 1


def test_words_are_alike_where_a_tokenizer_knows_no_spaces() -> None:
    assert len(sequences(wordpiece(), "dog")) == 1
