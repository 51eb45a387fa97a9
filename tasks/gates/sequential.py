"""Tests that may be looked at after every sample, and stopped at any of them: their level holds all the same.

Each keeps a bet against its hypothesis, an e-process: what it is worth reaches 1/alpha with a probability of alpha at
most, as long as the hypothesis is true (Ville's inequality). So 1 / (the most that it was ever worth) is a p-value at
every moment, and the differences whose bets are below 1/alpha are a confidence sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

_STAKES: Values = 0.98 * 2.0 ** (-np.arange(14) / 2)
"""Shares of the largest stake that is allowed. The bet is spread evenly over all of them: no single one is good both
for a candidate that loses everything and for one that loses a hundredth."""
_STEP = 0.0025
_GRID: Values = np.arange(-1 + _STEP, 1, _STEP)
"""The differences that bounds are looked for among. A bound is the last one that is refuted, so it is never too
narrow."""


@dataclass(frozen=True)
class Standing:
    """What a process says at a moment; as the fields of a `Comparison`, for a difference where more is better."""

    p_worse: float
    p_fine: float
    lower: float
    upper: float


class _Bets:
    """The best that bets against "at most" and "at least" each difference were ever worth, as logarithms."""

    def __init__(self, margin: float, *, bounds: bool) -> None:
        own = np.array([-float(margin)])
        self.differences: Values = np.concatenate([own, _GRID]) if bounds else own
        self._most_low, self._most_high = np.zeros_like(self.differences), np.zeros_like(self.differences)

    def note(self, at_most: Values, at_least: Values) -> None:
        self._most_low = np.maximum(self._most_low, at_most)
        self._most_high = np.maximum(self._most_high, at_least)

    def standing(self, level: float) -> Standing:
        need, grid = -math.log(level), self.differences[1:]
        below, above = grid[self._most_low[1:] >= need], grid[self._most_high[1:] >= need]
        return Standing(
            p_worse=math.exp(-float(self._most_high[0])),
            p_fine=math.exp(-float(self._most_low[0])),
            lower=float(below.max()) if below.size else -1.0,
            upper=float(above.min()) if above.size else 1.0,
        )


class PairedProcess:
    """Gains of the candidate on the same probes, each between -1 and 1, against a margin.

    By betting (Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86, 2024), with stakes that are fixed beforehand. Where the
    mean gain is m or more, 1 - stake (gain - m) does not grow on average, and a stake of 1 / (1 - m) at most keeps it
    positive; so with -margin for m it is a bet against "the candidate loses no more than the margin". Bounds cost
    some 0.2 ms a sample.
    """

    def __init__(self, margin: float, *, bounds: bool = False) -> None:
        self.samples = 0
        self._bets = _Bets(margin, bounds=bounds)
        means = self._bets.differences[:, None]
        self._means, self._high, self._low = means, _STAKES / (1 - means), _STAKES / np.maximum(1 + means, 1e-9)
        self._against_high, self._against_low = np.zeros_like(self._high), np.zeros_like(self._low)

    def observe(self, gain: float) -> None:
        """Take one pair: 1 if only the candidate was right, -1 if only the other one was, 0 if both agree.

        Raises ValueError for a gain beyond 1.
        """
        self.observe_together([(gain, 1)])

    def observe_together(self, gains: Iterable[tuple[float, int]]) -> None:
        """Take gains whose order nobody knows, each with how often it came: they are looked at once, after the last.

        Raises ValueError for a gain beyond 1.
        """
        for gain, times in gains:
            if not -1 <= gain <= 1:
                raise ValueError(f"a gain is between -1 and 1, not {gain}")
            self.samples += times
            distance = gain - self._means
            self._against_high += times * np.log1p(-self._high * distance)
            self._against_low += times * np.log1p(self._low * distance)
        self._bets.note(_worth(self._against_low), _worth(self._against_high))

    def standing(self, level: float) -> Standing:
        """What may be said now, whenever that is; the bounds at `level`, and -1 and 1 if none were asked for."""
        return self._bets.standing(level)


def _worth(bets: Values) -> Values:
    """The logarithm of what the even mixture of bets is worth, for each difference."""
    highest = bets.max(axis=1)
    return highest + np.log(np.exp(bets - highest[:, None]).mean(axis=1))


@dataclass(frozen=True)
class Rate:
    """So many requests, of which `events` did something bad: failed, took too long."""

    events: int
    requests: int

    def __post_init__(self) -> None:
        if not 0 <= self.events <= self.requests:
            raise ValueError(f"{self.events} of {self.requests} requests")

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.events + other.events, self.requests + other.requests)


class RateProcess:
    """Two rates of something bad on different requests: what a canary and the live release show of real traffic.

    For each block of new requests the rates so far are a guess, and the bet is the likelihood of the block by the
    guess, over that by the pair of rates nearest to the guess (in relative entropy) among those that the hypothesis
    allows, which are a line: candidate = live + margin (Turner, Ly and Grünwald, "Generic E-variables for exact
    sequential k-sample tests", 2024). The guess is made before the block, so it may be any. The difference counts as
    live - candidate: fewer bad ones are a gain.
    """

    def __init__(self, margin: float, *, bounds: bool = False) -> None:
        self.candidate = self.live = self._new_candidate = self._new_live = Rate(0, 0)
        self._bets = _Bets(margin, bounds=bounds)
        self._against_high = np.zeros_like(self._bets.differences)
        self._against_low = np.zeros_like(self._bets.differences)

    def observe(self, candidate: Rate, live: Rate) -> None:
        """Take what has come since the last call. A block ends once both releases have had a request."""
        self._new_candidate, self._new_live = self._new_candidate + candidate, self._new_live + live
        if not self._new_candidate.requests or not self._new_live.requests:
            return
        ours, theirs = self._new_candidate, self._new_live
        guess, their_guess = self._guess(self.candidate), self._guess(self.live)
        excess = -self._bets.differences
        nearest = _nearest(guess, their_guess, ours.requests, theirs.requests, excess)
        bet = _gain(ours, guess, nearest + excess) + _gain(theirs, their_guess, nearest)
        # Whoever guesses that a hypothesis is true bets nothing against it.
        self._against_high += np.where(guess - their_guess > excess, bet, 0.0)
        self._against_low += np.where(guess - their_guess < excess, bet, 0.0)
        self._bets.note(self._against_low, self._against_high)
        self.candidate, self.live = self.candidate + ours, self.live + theirs
        self._new_candidate = self._new_live = Rate(0, 0)

    def standing(self, level: float) -> Standing:
        """What may be said now, whenever that is; the bounds at `level`, and -1 and 1 if none were asked for."""
        return self._bets.standing(level)

    def _guess(self, rate: Rate) -> float:
        """A rate as far as it is known: that of both together, as long as its own events do not say otherwise."""
        both = self.candidate + self.live
        pool = (both.events + 0.5) / (both.requests + 1)
        return min(0.999, pool * (rate.events + 1) / (rate.requests * pool + 1))


def _nearest(ours: float, theirs: float, our_weight: int, their_weight: int, excess: Values) -> Values:
    """The live rate of that pair (rate + excess, rate) which is nearest to the pair of guesses, for each excess."""
    low, high = np.maximum(0.0, -excess), np.minimum(1.0, 1.0 - excess)
    width: Values = high - low
    low, high = low + 1e-9 * width, high - 1e-9 * width
    for _ in range(40):
        rate = (low + high) / 2
        slope = our_weight * _slope(rate + excess, ours) + their_weight * _slope(rate, theirs)
        low, high = np.where(slope < 0, rate, low), np.where(slope < 0, high, rate)
    nearest: Values = (low + high) / 2
    return nearest


def _slope(rate: Values, guess: float) -> Values:
    return (rate - guess) / (rate * (1 - rate))


def _gain(block: Rate, guess: float, rate: Values) -> Values:
    """The logarithm of a block's likelihood by the guess, over that by `rate`."""
    hit: Values = np.log(guess / rate)
    miss: Values = np.log((1 - guess) / (1 - rate))
    return block.events * hit + (block.requests - block.events) * miss
