"""Tails and quantiles of the distributions that the gates need: binomial, Student's t, normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

NORMAL = NormalDist()

POWER = 0.8
"""How surely a detectable loss is refused."""

_TINY = 1e-300
_CLOSE = 1e-15
_MOST_TERMS = 100_000


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), to about 1e-12.

    By its continued fraction (DLMF 8.17.22), evaluated forwards. Raises ArithmeticError if that does not converge,
    which takes more than 1e9 samples.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the other tail converges faster
        return 1 - beta_cdf(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    numerator, denominator, fraction = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1)), 1.0
    fraction = denominator
    for m in range(1, _MOST_TERMS):
        change = 1.0
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / _away_from_zero(1 + term * denominator)
            numerator = _away_from_zero(1 + term / numerator)
            change = denominator * numerator
            fraction *= change
        if abs(change - 1) < _CLOSE:
            return min(1.0, math.exp(log_front) * fraction / a)
    raise ArithmeticError(f"I_x({a}, {b}) does not converge at {x}")


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def binomial_at_least(k: int, n: int, p: float) -> float:
    """The probability of `k` or more successes in `n` trials of probability `p`."""
    if k <= 0:
        return 1.0
    return 0.0 if k > n else beta_cdf(p, k, n - k + 1)


def binomial_at_most(k: int, n: int, p: float) -> float:
    """The probability of `k` or fewer successes in `n` trials of probability `p`."""
    return binomial_at_least(n - k, n, 1 - p)


def t_cdf(t: float, degrees: float) -> float:
    """The probability that Student's t with `degrees` of freedom is at most `t`."""
    tail = beta_cdf(degrees / (degrees + t * t), degrees / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=1024)
def t_quantile(probability: float, degrees: float) -> float:
    """The value that Student's t stays below with `probability`."""
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    highest = 2.0
    while t_cdf(highest, degrees) < probability:
        highest *= 2
    return falling_root(lambda t: probability - t_cdf(t, degrees), 0.0, highest)


def falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function goes through zero, between `low` and `high`; the end that is nearer if it does not."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    for _ in range(80):
        middle = (low + high) / 2
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def z_of_power(level: float) -> float:
    """How many standard errors a loss has to lie beyond the margin, to be refused at `level` with POWER."""
    return NORMAL.inv_cdf(1 - level) + NORMAL.inv_cdf(POWER)
