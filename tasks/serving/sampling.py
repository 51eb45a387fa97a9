"""How a token is chosen by the scores of the whole vocabulary: for engines that give scores and choose nothing.

All is numpy in 64 bits on the CPU, so a seed means the same wherever the scores come from.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .contract import GenerationRequest, RequestRefused
from .guide_masks import Guide
from .settings import Sampling
from .tokenizer import Tokenizer
from .word_ids import word_sequences

Scores: TypeAlias = npt.NDArray[np.float64]
"""One for each token of the vocabulary: logits, or their log probabilities."""

MAX_REJECTED = 1000
"""Tokens for one place of an answer that were likeliest, or drawn, and would have completed a bad word."""


@dataclass(frozen=True)
class Chosen:
    """A token with its log probability, natural logarithm, and the likeliest in its place.

    Both are the model's own, before penalties and temperature; NaN and none where they are not wanted.
    """

    token_id: int
    log_prob: float = float("nan")
    top: tuple[tuple[int, float], ...] = ()


def told(logits: npt.NDArray[np.float32], token_id: int, number: int) -> Chosen:
    """A token that somebody else has chosen, with the `number` likeliest in its place."""
    own = log_probs(logits.astype(np.float64))
    return Chosen(token_id, float(own[token_id]), likeliest(own, number))


class Sampler:
    """Chooses the tokens of one answer, one after the other.

    Penalties look at the prompt and at the answer so far, as those of TensorRT-LLM do.
    """

    def __init__(
        self,
        request: GenerationRequest,
        sampling: Sampling,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        end_ids: Sequence[int],
        guide: Guide | None = None,
    ) -> None:
        self._request = request
        self._sampling = sampling
        self.end_ids = list(end_ids)
        """Tokens that end the answer."""
        self._seen, counts = np.unique(np.array(prompt, dtype=np.int64), return_counts=True)
        self._counts = dict(zip(self._seen.tolist(), counts.tolist(), strict=True))
        self._guide = guide
        self._bad_words = _BadWords(request, tokenizer)
        self._random = np.random.default_rng(secrets.randbits(64) if request.seed is None else request.seed)
        self._made = 0

    @property
    def tells(self) -> bool:
        """Whether log probabilities are wanted."""
        return self._request.return_log_probs

    def choose(self, logits: npt.NDArray[np.float32]) -> Chosen:
        """The next token. Raises RequestRefused where bad words leave none, or the guide does."""
        scores = logits.astype(np.float64)
        own = log_probs(scores) if self.tells else None
        self._penalize(scores)
        if self._made < self._request.min_tokens:
            scores[[each for each in self.end_ids if each < len(scores)]] = -np.inf
        if self._guide is not None:
            self._guide.forbid(scores)
        self._bad_words.forbid(scores)
        token_id = self._allowed(scores)
        self._take(token_id)
        if own is None:
            return Chosen(token_id)
        return Chosen(token_id, float(own[token_id]), likeliest(own, self._request.num_top_log_probs))

    def _penalize(self, scores: Scores) -> None:
        sampling = self._sampling
        if (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1, 0, 0):
            return
        seen = np.fromiter(self._counts, dtype=np.int64)
        counts = np.fromiter(self._counts.values(), dtype=np.int64)
        within = seen < len(scores)
        seen, counts = seen[within], counts[within]
        of_seen = scores[seen]
        of_seen *= np.where(of_seen < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
        scores[seen] = of_seen - sampling.presence_penalty - sampling.frequency_penalty * counts

    def _allowed(self, scores: Scores) -> int:
        """The best token, or a drawn one. One that would complete a bad word is put back, and another drawn."""
        for _ in range(MAX_REJECTED):
            if not np.isfinite(scores.max()):
                break
            token_id = self._drawn(scores)
            if not self._bad_words.completed_by(token_id):
                return token_id
            scores[token_id] = -np.inf
        named = "'bad_words' leave" if self._request.bad_words else "'guided_decoding_guide' leaves"
        raise RequestRefused(f"{named} no token to go on with")

    def _drawn(self, scores: Scores) -> int:
        sampling = self._sampling
        if sampling.temperature == 0 or sampling.top_k == 1:
            return int(np.argmax(scores))
        kept = probabilities(scores, sampling)
        sums = np.cumsum(kept)
        (drawn,) = np.searchsorted(sums, [self._random.random() * float(sums[-1])], side="right").tolist()
        return drawn

    def _take(self, token_id: int) -> None:
        self._made += 1
        self._counts[token_id] = self._counts.get(token_id, 0) + 1
        self._bad_words.take(token_id)
        if self._guide is not None:
            self._guide.take(token_id)


class _BadWords:
    """Words that must not be in an answer: by their text, however it falls into tokens."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self._words = request.bad_words
        self._skip = request.skip_special_tokens
        self._tokenizer = tokenizer
        self._sequences = word_sequences(tokenizer, self._words)
        # A token has a byte at least, and a character at most four of them.
        self._kept = 4 * max(map(len, self._words), default=0)
        self._last: list[int] = []

    def forbid(self, scores: Scores) -> None:
        """Take the tokens out that complete a word as the tokenizer itself writes it: nearly all that would."""
        for *before, last in self._sequences:
            if last < len(scores) and self._last[len(self._last) - len(before) :] == before:
                scores[last] = -np.inf

    def completed_by(self, token_id: int) -> bool:
        if not self._words:
            return False
        text = self._tokenizer.decode([*self._last, token_id], skip_special_tokens=self._skip)
        return any(word in text for word in self._words)

    def take(self, token_id: int) -> None:
        if self._words:
            self._last = [*self._last, token_id][-self._kept :]


def log_probs(logits: Scores) -> Scores:
    """Natural logarithms of the probabilities."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def likeliest(scores: Scores, number: int) -> tuple[tuple[int, float], ...]:
    """The tokens with the highest scores, the highest first; of equal ones the lower number."""
    if not number:
        return ()
    some: list[int] = np.argpartition(-scores, min(number, len(scores) - 1))[:number].tolist()
    ordered = sorted((-float(scores[token_id]), token_id) for token_id in some)
    return tuple((token_id, -value) for value, token_id in ordered)


def probabilities(scores: Scores, sampling: Sampling) -> Scores:
    """Of each token, those that `top_k` and `top_p` leave; their sum is not 1. The temperature comes first."""
    scaled = (scores - scores.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    kept = np.exp(scaled)
    if sampling.top_p < 1:
        order = np.argsort(-kept, kind="stable")
        sums = np.cumsum(kept[order])
        # The first tokens whose sum reaches it: at least the best one.
        (before,) = np.searchsorted(sums, [sampling.top_p * float(sums[-1])]).tolist()
        kept[order[before + 1 :]] = 0.0
    return kept
