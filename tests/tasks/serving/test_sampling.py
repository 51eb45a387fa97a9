"""Tokens chosen by the scores of a vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tasks.serving.contract import GenerationRequest, RequestRefused
from tasks.serving.sampling import Sampler, likeliest, log_probs, probabilities
from tasks.serving.settings import Sampling
from tests.tasks.serving.small_tokenizers import byte_level

TOKENIZER = byte_level()
SCORES = np.array([0.0, 3.0, 1.0, 2.0, -1.0], dtype=np.float32)
GREEDY = Sampling(temperature=0.0)


def sampler(
    sampling: Sampling = GREEDY, prompt: Sequence[int] = (), ends: Sequence[int] = (), **fields: Any
) -> Sampler:
    return Sampler(GenerationRequest(**fields), sampling, prompt, TOKENIZER, ends)


def words(*texts: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores by which these come, the first before the others, each as its first token."""
    scores = np.full(TOKENIZER.size, -10.0, dtype=np.float32)
    for number, text in enumerate(texts):
        scores[TOKENIZER.encode(text, add_special_tokens=False)[0]] = 10.0 - number
    return scores


def test_greedy_takes_the_best() -> None:
    for sampling in (GREEDY, Sampling(top_k=1), Sampling(temperature=1e-6), Sampling(top_p=1e-6)):
        assert sampler(sampling).choose(SCORES).token_id == 1


def test_what_is_drawn_is_drawn_as_often_as_it_is_likely() -> None:
    drawing, number = sampler(Sampling(temperature=2.0), seed=3), 4000
    found = Counter(drawing.choose(SCORES).token_id for _ in range(number))
    expected = np.exp(log_probs(SCORES.astype(np.float64) / 2))
    for token_id, share in enumerate(expected):
        assert found[token_id] / number == pytest.approx(share, abs=0.03)


def test_a_seed_repeats_in_all_its_bits() -> None:
    def drawn(seed: int) -> list[int]:
        drawing = sampler(Sampling(), seed=seed)
        return [drawing.choose(SCORES).token_id for _ in range(30)]

    assert drawn(7) == drawn(7)
    assert len({tuple(drawn(seed)) for seed in (7, 8, 7 + 2**32, 7 + 2**63)}) == 4


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(top_k=2), {1, 3}),
        (Sampling(top_k=99), {0, 1, 2, 3, 4}),
        # They have 64, 24, 9, 3 and 1 percent.
        (Sampling(top_p=0.6), {1}),
        (Sampling(top_p=0.65), {1, 3}),
        (Sampling(top_p=0.9), {1, 2, 3}),
        (Sampling(top_p=1.0), {0, 1, 2, 3, 4}),
        # At a temperature of 4 they have 33, 26, 20, 16 and 12 percent, of which top_k takes three.
        (Sampling(top_p=0.6, temperature=4.0), {1, 2, 3}),
        (Sampling(top_p=0.6, top_k=3, temperature=4.0), {1, 3}),
    ],
)
def test_what_is_left_to_be_drawn(sampling: Sampling, left: set[int]) -> None:
    assert set(np.flatnonzero(probabilities(SCORES.astype(np.float64), sampling)).tolist()) == left


def test_penalties_look_at_the_prompt_and_at_the_answer() -> None:
    assert sampler(Sampling(temperature=0.0, repetition_penalty=2.0), prompt=[1]).choose(SCORES).token_id == 3
    # A score below 0 gets lower, too.
    low = sampler(Sampling(temperature=0.0, repetition_penalty=2.0), prompt=[0, 2])
    assert low.choose(np.array([-1.0, -1.5, -1.2], dtype=np.float32)).token_id == 1
    for penalized in (replace(GREEDY, presence_penalty=1.5), replace(GREEDY, frequency_penalty=1.5)):
        answering = sampler(penalized)
        assert [answering.choose(SCORES).token_id for _ in range(2)] == [1, 3]
    # Once for each time, or once for all.
    often = [1, 1, 1]
    assert sampler(Sampling(temperature=0.0, presence_penalty=0.5), often).choose(SCORES).token_id == 1
    assert sampler(Sampling(temperature=0.0, frequency_penalty=0.5), often).choose(SCORES).token_id == 3


def test_no_answer_ends_before_it_may() -> None:
    answering = sampler(ends=[1, 99], min_tokens=2)
    assert [answering.choose(SCORES).token_id for _ in range(3)] == [3, 3, 1]


def test_bad_words_are_kept_out_however_they_fall_into_tokens() -> None:
    letters = [words(letter) for letter in "ab"]
    a, b = (TOKENIZER.encode(letter, add_special_tokens=False)[0] for letter in "ab")
    c = TOKENIZER.encode("c", add_special_tokens=False)[0]
    answering = sampler(bad_words=("ab",))
    assert answering.choose(letters[0]).token_id == a
    assert answering.choose(words("b", "c")).token_id == c
    # What was not right before it may come.
    assert answering.choose(letters[1]).token_id == b


def test_bad_words_may_leave_nothing() -> None:
    a = TOKENIZER.encode("a", add_special_tokens=False)[0]
    scores = np.full(TOKENIZER.size, -np.inf, dtype=np.float32)
    scores[a] = 1.0
    with pytest.raises(RequestRefused, match="'bad_words'"):
        sampler(bad_words=("a",)).choose(scores)


def test_log_probabilities_are_the_models_own() -> None:
    exact = log_probs(SCORES.astype(np.float64))
    assert np.exp(exact).sum() == pytest.approx(1.0)
    told = sampler(
        Sampling(temperature=0.0, repetition_penalty=9.0), [1], return_log_probs=True, num_top_log_probs=2
    ).choose(SCORES)
    assert (told.token_id, told.log_prob) == (3, exact[3])
    assert told.top == ((1, exact[1]), (3, exact[3]))
    assert not sampler().choose(SCORES).top


def test_the_likeliest_are_in_order() -> None:
    assert [token_id for token_id, _ in likeliest(np.array([1.0, 2.0, 2.0, 0.0]), 3)] == [1, 2, 0]
    assert len(likeliest(np.array([1.0, 2.0]), 20)) == 2
