"""Tests that may be looked at after every sample, and stopped at any of them: their level holds all the same.

Each keeps a bet against its hypothesis, an e-process: what it is worth stays below 1/alpha with a probability of 1 -
alpha as long as the hypothesis is true (Ville's inequality). So 1 / (the most that it was ever worth) is a p-value at
every moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tasks.gates.distributions import falling_root

_STAKES = 0.98 * 2.0 ** (-np.arange(14) / 2)
"""Shares of the largest stake that is allowed. The bet is spread evenly over all of them: no single one is good both
for a candidate that loses everything and for one that loses a hundredth."""


def _no_bet() -> npt.NDArray[np.float64]:
    return np.zeros(len(_STAKES))


@dataclass
class PairedProcess:
    """Gains of the candidate on the same probes, each between -1 and 1, against a margin; see `observe`.

    One bet is against "on average it loses no more than the margin", one against "it loses the margin or more". By
    betting (Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86, 2024), with stakes that are fixed beforehand.
    """

    margin: float
    samples: int = 0
    _against_fine: npt.NDArray[np.float64] = field(default_factory=_no_bet)
    _against_worse: npt.NDArray[np.float64] = field(default_factory=_no_bet)
    _most_against_fine: float = 0.0
    _most_against_worse: float = 0.0

    def observe(self, gain: float) -> None:
        """Take one pair: 1 if only the candidate was right, -1 if only the other one was, 0 if both agree.

        Under the first hypothesis the mean of gain + margin is not negative, so what is bet against it,
        1 - stake (gain + margin), does not grow on average; a stake of 1 / (1 + margin) at most keeps it positive.
        Raises ValueError for a gain beyond 1.
        """
        if not -1 <= gain <= 1:
            raise ValueError(f"a gain is between -1 and 1, not {gain}")
        self.samples += 1
        distance = gain + self.margin
        self._against_fine += np.log1p(-_STAKES * distance / (1 + self.margin))
        self._against_worse += np.log1p(_STAKES * distance / max(1 - self.margin, 1e-9))
        self._most_against_fine = max(self._most_against_fine, _worth(self._against_fine))
        self._most_against_worse = max(self._most_against_worse, _worth(self._against_worse))

    @property
    def p_worse(self) -> float:
        """Small where the candidate loses more than the margin."""
        return math.exp(-self._most_against_fine)

    @property
    def p_fine(self) -> float:
        """Small where it loses less."""
        return math.exp(-self._most_against_worse)


def _worth(bets: npt.NDArray[np.float64]) -> float:
    """The logarithm of what the even mixture of bets is worth."""
    highest = float(bets.max())
    return highest + math.log(float(np.exp(bets - highest).mean()))


@dataclass(frozen=True)
class Rate:
    """So many requests, of which `events` did something: failed, took too long."""

    events: int
    requests: int

    def __post_init__(self) -> None:
        if not 0 <= self.events <= self.requests:
            raise ValueError(f"{self.events} of {self.requests} requests")

    @property
    def share(self) -> float:
        return self.events / self.requests if self.requests else 0.0


def rate_p_values(candidate: Rate, live: Rate, margin: float) -> tuple[float, float]:
    """`p_worse` and `p_fine` of two unpaired rates of what is bad, at any moment of a watch.

    Each rate has the mixture martingale of Robbins with Jeffreys' prior: the likelihood of what came, on average over
    Beta(1/2, 1/2), over that at a fixed rate. Their product is a bet against each pair of rates, and the least of it
    over all pairs of a hypothesis is one against the hypothesis (as Turner, Ly and Grünwald do for two streams, 2024).
    The first hypothesis is "the candidate's rate is at most `margin` above the live one's".
    """
    return _p_of_excess(candidate, live, margin), _p_of_excess(candidate, live, margin, above=True)


def rate_bounds(candidate: Rate, live: Rate, level: float) -> tuple[float, float]:
    """The lower and upper bounds of (candidate - live), each at `level`, at any moment of a watch."""
    lower = falling_root(lambda excess: level - _p_of_excess(candidate, live, excess), -1.0, 1.0)
    upper = -falling_root(lambda excess: level - _p_of_excess(candidate, live, -excess, above=True), -1.0, 1.0)
    return lower, upper


def _p_of_excess(candidate: Rate, live: Rate, excess: float, *, above: bool = False) -> float:
    """The p-value of "candidate - live is at most `excess`", or with `above` at least."""
    if (candidate.share - live.share <= excess) != above or candidate.share - live.share == excess:
        best = _log_likelihood(candidate, candidate.share) + _log_likelihood(live, live.share)
    else:
        best = _best_with_excess(candidate, live, excess)
    return math.exp(min(0.0, best - _log_mixture(candidate) - _log_mixture(live)))


def _best_with_excess(candidate: Rate, live: Rate, excess: float) -> float:
    """The highest logarithm of a likelihood of two rates whose difference is `excess`."""

    def slope(rate: float) -> float:
        return _slope(candidate, rate + excess) + _slope(live, rate)

    low, high = max(0.0, -excess), min(1.0, 1.0 - excess)
    rate = falling_root(slope, low + 1e-12, high - 1e-12) if high - low > 2e-12 else (low + high) / 2
    return _log_likelihood(candidate, rate + excess) + _log_likelihood(live, rate)


def _slope(rate: Rate, at: float) -> float:
    return rate.events / max(at, 1e-300) - (rate.requests - rate.events) / max(1 - at, 1e-300)


def _log_likelihood(rate: Rate, at: float) -> float:
    rest = rate.requests - rate.events
    at = min(max(at, 0.0), 1.0)
    if (at == 0 and rate.events) or (at == 1 and rest):
        return -math.inf
    return (rate.events * math.log(at) if rate.events else 0.0) + (rest * math.log1p(-at) if rest else 0.0)


def _log_mixture(rate: Rate) -> float:
    """The logarithm of the mean likelihood over Beta(1/2, 1/2), which is B(events + 1/2, rest + 1/2) / B(1/2, 1/2)."""
    rest = rate.requests - rate.events
    return math.lgamma(rate.events + 0.5) + math.lgamma(rest + 0.5) - math.lgamma(rate.requests + 1) - math.log(math.pi)
