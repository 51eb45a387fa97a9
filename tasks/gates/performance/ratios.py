"""The same prompts at two releases: by which factor the candidate takes longer, with bounds by a bootstrap over rounds.

Times of one round hang together, since whatever else the machine did in these seconds is in all of them. So rounds are
drawn, not prompts. The bootstrap is the studentized one (Efron and Tibshirani, An Introduction to the Bootstrap, 12.5):
each sample of rounds is measured in its own standard errors, without which a dozen rounds give bounds that are too
narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.gates.distributions import NORMAL, POWER
from tasks.gates.proportions import needed_samples
from tasks.targets.gate_record import Comparison

FEWEST_ROUNDS = 6
_SAMPLES = 4000

_Numbers = npt.NDArray[np.float64]


def compare_ratios(
    measure: str, rounds: Sequence[Sequence[float]], *, margin: float, alpha: float, seed: int
) -> Comparison:
    """`rounds` has the natural logarithms of candidate / live of each prompt, by round.

    A ratio is the exponential of the mean over rounds; what is compared is how far it lies below 1. `margin` is how
    much longer the candidate may take: 0.1 for a tenth. Raises ValueError for fewer than FEWEST_ROUNDS rounds.
    """
    means = np.array([float(np.mean(each)) for each in rounds if len(each)])
    count, prompts = len(means), sum(map(len, rounds))
    if count < FEWEST_ROUNDS:
        raise ValueError(f"a ratio needs {FEWEST_ROUNDS} rounds or more")
    mean, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(count)
    edge = math.log1p(margin)
    drawn = _studentized(means, seed)
    reached = (mean - edge) / error if error else math.copysign(math.inf, mean - edge)
    low, high = np.quantile(drawn, (alpha, 1 - alpha))
    slowest, fastest = mean - float(low) * error, mean - float(high) * error
    return Comparison(
        measure=measure,
        method=f"bootstrap over {count} rounds of {prompts} prompts",
        candidate=math.exp(mean),
        other=1.0,
        difference=1 - math.exp(mean),
        lower=1 - math.exp(slowest),
        upper=1 - math.exp(fastest),
        margin=margin,
        p_worse=_share(np.count_nonzero(drawn >= reached), len(drawn)),
        p_fine=_share(np.count_nonzero(drawn <= reached), len(drawn)),
        samples=prompts,
        detectable=math.expm1(edge + _detected(float(high), count) * error),
        needed=needed_samples(edge - mean, error, prompts, alpha),
    )


def _studentized(means: _Numbers, seed: int) -> _Numbers:
    """How many of its own standard errors the mean of each sample of rounds lies above the mean of all."""
    count = len(means)
    chosen = (np.random.default_rng(seed).random((_SAMPLES, count)) * count).astype(np.intp)
    samples = means[chosen]
    errors = samples.std(axis=1, ddof=1) / math.sqrt(count)
    # A sample of one round over and over has no spread, and says nothing.
    spread = errors > 1e-12
    if not spread.any():
        return np.zeros(_SAMPLES)
    return (samples.mean(axis=1)[spread] - means.mean()) / errors[spread]


def _detected(quantile: float, rounds: int) -> float:
    """How many standard errors a loss has to lie beyond the edge, to reach that quantile with POWER.

    The error is an estimate too, by which the distance spreads more than a normal one: the approximation of the
    noncentral t by its variance, 1 + q^2 / 2 df (Johnson and Kotz, Continuous Univariate Distributions 2, 31).
    """
    return quantile + NORMAL.inv_cdf(POWER) * math.sqrt(1 + quantile * quantile / (2 * (rounds - 1)))


def _share(count: int, of: int) -> float:
    """Never zero: of so many samples none would have been less likely than this."""
    return min(1.0, (count + 1) / (of + 1))
