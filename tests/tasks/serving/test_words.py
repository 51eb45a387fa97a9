"""Stop words and bad words, wherever tokens fall."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence

import pytest

from tasks.serving.contract import MAX_WORD_CHARACTERS, RequestRefused
from tasks.serving.engine import Piece
from tasks.serving.words import StopWords, grammar_without


def cut(words: Sequence[str], texts: Sequence[str]) -> tuple[str, int, bool]:
    """The text that gets out, how many log probabilities with it, and whether a stop word ended it."""
    stop, out = StopWords(words), list[Piece]()
    for text in texts:
        out.append(stop.push(Piece(text, (-1.0,))))
        if stop.stopped:
            break
    else:
        out.append(stop.flush())
    return "".join(piece.text for piece in out), sum(len(piece.log_probs) for piece in out), stop.stopped


def every_split(text: str) -> list[list[str]]:
    return [
        [text[start:end] for start, end in itertools.pairwise((0, *cuts, len(text)))]
        for count in range(len(text))
        for cuts in itertools.combinations(range(1, len(text)), count)
    ]


@pytest.mark.parametrize(
    ("words", "text"), [(["cd"], "abcdef"), (["xx", "def"], "abcdefg"), (["aab"], "aaaabc"), (["b", "bc"], "abcd")]
)
def test_nothing_of_a_stop_word_gets_out_however_it_is_split(words: list[str], text: str) -> None:
    expected = text[: min(text.find(word) for word in words if word in text)]
    for pieces in every_split(text):
        assert cut(words, pieces)[::2] == (expected, True), pieces


def test_the_beginning_of_a_stop_word_gets_out_when_nothing_follows() -> None:
    for pieces in every_split("abcde"):
        assert cut(["dex", "zz"], pieces) == ("abcde", len(pieces), False)


def test_log_probabilities_are_those_of_tokens_whose_text_gets_out() -> None:
    assert cut(["cd"], ["a", "bc", "d", "e"]) == ("ab", 2, True)
    assert cut(["cd"], ["ab", "c", "d"]) == ("ab", 1, True)


def accepts(grammar: str, text: str) -> bool:
    """Whether a text has a derivation, by the grammar's rules as an automaton."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    state = rules["root"]
    for character in text:
        code = f"\\U{ord(character):08X}"
        for choice in rules[state].split(" | "):
            match = re.fullmatch(r'(?:"(?P<one>.+)"|\[\^(?P<others>.*)\]) (?P<next>s\d+)', choice)
            if match and (match["one"] == code if match["one"] else code not in match["others"]):
                state = match["next"]
                break
        else:
            return False
    return '""' in rules[state]


@pytest.mark.parametrize("words", [["ab"], ["aab", "ba"], ["abc", "bca", "c"], ["aa", "aabaa"]])
def test_the_grammar_has_every_text_without_the_bad_words_and_no_other(words: list[str]) -> None:
    grammar = grammar_without(words)
    for length in range(7):
        for letters in itertools.product("abcd", repeat=length):
            text = "".join(letters)
            assert accepts(grammar, text) == all(word not in text for word in words), text


def test_a_grammar_of_too_many_choices_is_refused() -> None:
    letters = [chr(ord("一") + number) for number in range(2000)]
    with pytest.raises(RequestRefused, match="'bad_words'"):
        grammar_without([first + second for first, second in zip(letters[:1000], letters[1000:], strict=True)])


def test_long_words_cost_little() -> None:
    # A word of 2,000 characters took a minute; so did many, for each piece of an answer.
    started = time.process_time()
    grammar_without(["ab" * (MAX_WORD_CHARACTERS // 2)])
    cut([f"a{number:09}" for number in range(MAX_WORD_CHARACTERS // 10)], ["a"] * 100)
    assert time.process_time() - started < 2
