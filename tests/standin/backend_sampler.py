"""A tiny language model that samples as TensorRT-LLM does: n-grams of a text, mixed with the words of the prompt.

Part of the stand-in for TensorRT-LLM's C++ backend, which only tests use.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .guide import Guide

ORDER = 5
"""Tokens of the longest n-grams."""

Floats = npt.NDArray[np.float64]


class NGrams:
    """Counts of what follows each run of up to `ORDER` - 1 tokens in `corpus`."""

    def __init__(self, corpus: Sequence[Sequence[int]], vocab_size: int) -> None:
        self._size = vocab_size
        self._next: dict[tuple[int, ...], dict[int, int]] = {}
        for text in corpus:
            for end, length in itertools.product(range(len(text)), range(ORDER)):
                if length <= end:
                    counts = self._next.setdefault(tuple(text[end - length : end]), {})
                    counts[text[end]] = counts.get(text[end], 0) + 1

    def logits(self, history: Sequence[int]) -> Floats:
        """How likely each token is after `history`. Each longer run counts four times as much. Most are above 0."""
        weights = np.full(self._size, 0.05 / self._size)
        np.add.at(weights, list(history), 1 / len(history))
        for length in range(ORDER):
            counts = self._next.get(tuple(history[len(history) - length :]), {})
            if counts and length <= len(history):
                share = 4.0**length / sum(counts.values())
                weights[list(counts)] += np.fromiter(counts.values(), float) * share
        logits: Floats = np.log(weights)
        return np.add(logits, 20.0)


def adapter_logits(weights: bytes, vocab_size: int) -> Floats:
    """What an adapter with these weights adds: something else for each, and enough to change most answers."""
    seed = int.from_bytes(hashlib.sha256(weights).digest()[:8], "little")
    return np.random.default_rng(seed).normal(0.0, 6.0, vocab_size)


@dataclass
class Wanted:
    """How a request wants its tokens. Defaults are those of the executor."""

    prompt: list[int]
    max_tokens: int
    end_id: int = -1
    top_k: int = 0
    top_p: float = 0.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    seed: int = 0
    beam_width: int = 1
    length_penalty: float = 0.0
    stop_words: list[list[int]] = field(default_factory=list[list[int]])
    bad_words: list[list[int]] = field(default_factory=list[list[int]])
    guide: Guide | None = None
    adapter: Floats | None = None
    """What an adapter adds to the logits of every token."""


@dataclass(frozen=True)
class Beam:
    """Tokens so far, each with the natural logarithm of its probability. `ended`: by the end token or a stop word."""

    ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    ended: bool = False

    def grown(self, token: int, log_prob: float, wanted: Wanted) -> Beam:
        ids = (*self.ids, token)
        stopped = any(word == list(ids[-len(word) :]) for word in wanted.stop_words)
        return Beam(ids, (*self.log_probs, log_prob), stopped or token == wanted.end_id)

    def score(self, wanted: Wanted) -> float:
        return sum(self.log_probs) / max(1, len(self.ids)) ** wanted.length_penalty


def generate(model: NGrams, wanted: Wanted) -> Iterator[list[Beam]]:
    """The beams after each further token, the best first. One beam is sampled, several are searched."""
    random = np.random.default_rng(wanted.seed)
    beams = [Beam()]
    for _ in range(wanted.max_tokens):
        if all(beam.ended for beam in beams):
            return
        grown = [beam for beam in beams if beam.ended]
        for beam in (beam for beam in beams if not beam.ended):
            log_probs = _log_probs(model, wanted, beam.ids)
            if wanted.beam_width == 1:
                tokens: Any = [_sampled(log_probs, wanted, random)]
            else:
                tokens = np.argsort(-log_probs, kind="stable")[: 2 * wanted.beam_width]
            grown += [beam.grown(int(token), float(log_probs[token]), wanted) for token in tokens]
        beams = sorted(grown, key=lambda beam: -beam.score(wanted))[: wanted.beam_width]
        yield beams


def _log_probs(model: NGrams, wanted: Wanted, answer: Sequence[int]) -> Floats:
    history = [*wanted.prompt, *answer]
    logits = model.logits(history)
    if wanted.adapter is not None:
        logits = logits + wanted.adapter
    seen = np.bincount(history, minlength=len(logits)).astype(float)
    penalized = np.where(logits < 0, logits * wanted.repetition_penalty, logits / wanted.repetition_penalty)
    logits = np.where(seen > 0, penalized, logits)
    logits -= wanted.presence_penalty * (seen > 0) + wanted.frequency_penalty * seen
    logits /= wanted.temperature
    for word in wanted.bad_words:
        if word[:-1] == list(answer[len(answer) - len(word) + 1 :]) or len(word) == 1:
            logits[word[-1]] = -np.inf
    if 0 <= wanted.end_id < len(logits) and len(answer) < wanted.min_tokens:
        logits[wanted.end_id] = -np.inf
    if wanted.guide is not None:
        logits[~wanted.guide.allowed(answer)] = -np.inf
    return logits - np.logaddexp.reduce(logits)


def _sampled(log_probs: Floats, wanted: Wanted, random: np.random.Generator) -> int:
    order = np.argsort(-log_probs, kind="stable")
    top_k, top_p = wanted.top_k, wanted.top_p
    if top_k == 0 and top_p == 0:
        top_k = 1
    if top_k:
        order = order[:top_k]
    kept: Floats = np.exp(log_probs[order])
    if 0 < top_p < 1:
        # The fewest tokens that reach the share, and at least one.
        shares: Floats = np.cumsum(kept)
        count = 1 + int(np.sum(shares < top_p * shares[-1]))
        order, kept = order[:count], kept[:count]
    chosen: int = random.choice(len(order), p=kept / kept.sum())
    return int(order[chosen])
