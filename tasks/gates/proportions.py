"""Proportions: one against a fixed value, and two of the same prompts against each other.

The tests are of non-inferiority. `p_worse` is the p-value of "the candidate loses no more than the margin": a small one
says that it loses more. `p_fine` is that of "it loses the margin or more": a small one says that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from tasks.gates.distributions import (
    NORMAL,
    beta_cdf,
    binomial_at_least,
    binomial_at_most,
    falling_root,
    z_of_power,
)
from tasks.targets.gate_record import Comparison

_CORRECTION = 0.5
"""Taken off the difference in counts. Enumerated for 20 to 400 prompts, margins to 0.05 and all rates of flips, the
test is then above its level by a tenth at most, and without it by half."""
_MOST_NEEDED = 1_000_000


def clopper_pearson(successes: int, of: int, level: float) -> tuple[float, float]:
    """The exact one-sided lower and upper bounds of a proportion, each at `level` (Clopper and Pearson, 1934).

    The lower one is the p with P(X >= successes | p) = level, the upper one that with P(X <= successes | p) = level.
    Without samples they are 0 and 1.
    """
    lower = 0.0 if successes == 0 else _beta_quantile(level, successes, of - successes + 1)
    upper = 1.0 if successes >= of else _beta_quantile(1 - level, successes + 1, of - successes)
    return lower, upper


def _beta_quantile(probability: float, a: float, b: float) -> float:
    return falling_root(lambda x: probability - beta_cdf(x, a, b), 0.0, 1.0)


def compare_with_floor(measure: str, successes: int, of: int, floor: float, *, alpha: float) -> Comparison:
    """A proportion, such as of right answers, against a `floor` from the model's file: the exact binomial test.

    Raises ValueError without samples: no data is no evidence, but a gap.
    """
    if of <= 0:
        raise ValueError("a proportion of no samples")
    rate = successes / of
    lower, upper = clopper_pearson(successes, of, alpha)
    spread = math.sqrt(max(floor * (1 - floor), 0.25 / of) / of)
    return Comparison(
        measure=measure,
        method=f"exact binomial, {of} samples",
        against="floor",
        candidate=rate,
        other=floor,
        difference=rate - floor,
        lower=lower - floor,
        upper=upper - floor,
        margin=0,
        p_worse=binomial_at_most(successes, of, floor),
        p_fine=binomial_at_least(successes, of, floor),
        samples=of,
        detectable=min(1.0, z_of_power(alpha) * spread),
        needed=needed_samples(rate - floor, spread, of, alpha),
    )


def compare_paired_answers(
    measure: str,
    candidate: Sequence[bool],
    other: Sequence[bool],
    *,
    margin: float,
    alpha: float,
    against: Literal["live", "reference"] = "live",
) -> Comparison:
    """Whether each of the same prompts was answered right, by the candidate and by what it is compared with.

    The prompts that only one of both answers right say everything: with a margin of zero the exact test of McNemar
    (1947), else Tango's score test of the difference (Statistics in Medicine 17, 1998), with a correction for
    continuity, whose inversion gives the bounds. Raises ValueError for sequences of different lengths, or without a
    prompt.
    """
    if len(candidate) != len(other) or not candidate:
        raise ValueError("pairs need two answers to each prompt, and at least one prompt")
    prompts = len(candidate)
    worse = sum(theirs and not ours for ours, theirs in zip(candidate, other, strict=True))
    better = sum(ours and not theirs for ours, theirs in zip(candidate, other, strict=True))
    p_worse, p_fine = paired_p_values(worse, better, prompts, margin)
    lower, upper = paired_bounds(worse, better, prompts, alpha)
    if margin == 0:  # where the exact test is the stricter one, the bounds say what it says
        lower = lower if p_fine <= alpha else min(lower, 0.0)
        upper = upper if p_worse <= alpha else max(upper, 0.0)
    difference = (better - worse) / prompts
    flips = max(worse + better, 1)
    return Comparison(
        measure=measure,
        method=f"{'exact McNemar' if margin == 0 else 'paired score test'}, {prompts} prompts, {worse + better} differ",
        against=against,
        candidate=sum(candidate) / prompts,
        other=sum(other) / prompts,
        difference=difference,
        lower=lower,
        upper=upper,
        margin=margin,
        p_worse=p_worse,
        p_fine=p_fine,
        samples=prompts,
        detectable=detectable_loss((flips - abs(better - worse)) / prompts, prompts, margin, alpha),
        needed=needed_samples(
            difference + margin, math.sqrt(flips / prompts - difference**2) / math.sqrt(prompts), prompts, alpha
        ),
    )


def paired_p_values(worse: int, better: int, prompts: int, margin: float) -> tuple[float, float]:
    """`p_worse` and `p_fine` of a table: `worse` prompts only the other one answers right, `better` only the candidate.

    With a margin of zero both are exact.
    """
    if margin == 0:
        flips = worse + better
        return binomial_at_least(worse, flips, 0.5), binomial_at_least(better, flips, 0.5)
    above = NORMAL.cdf(_score(worse, better, prompts, -margin, _CORRECTION))
    below = NORMAL.cdf(-_score(worse, better, prompts, -margin, -_CORRECTION))
    return above, below


def paired_bounds(worse: int, better: int, prompts: int, level: float) -> tuple[float, float]:
    """The one-sided lower and upper bounds of the difference, each at `level`: those that the score test just keeps."""
    z = NORMAL.inv_cdf(1 - level)
    lower = falling_root(lambda d: _score(worse, better, prompts, d, -_CORRECTION) - z, -1.0, 1.0)
    upper = falling_root(lambda d: _score(worse, better, prompts, d, _CORRECTION) + z, -1.0, 1.0)
    return lower, upper


def _score(worse: int, better: int, prompts: int, difference: float, shift: float) -> float:
    """How many standard errors the table lies above `difference`. `shift`, in prompts, is added to what it found.

    The variance is that of the most likely rates that have this difference (Tango's equation for q21).
    """
    n, d = prompts, difference
    b = (2 * n - better + worse) * d - better - worse
    q = (math.sqrt(max(b * b + 8 * n * worse * d * (1 - d), 0.0)) - b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    found = better - worse + shift - n * d
    if variance <= 1e-12 * n:
        return 0.0 if found == 0 else math.copysign(math.inf, found)
    return found / math.sqrt(variance)


def detectable_loss(flips: float, prompts: int, margin: float, level: float) -> float:
    """The loss that a test at `level` refuses with a power of 0.8, if besides it a share `flips` of answers differs."""
    least = max(flips, 1 / prompts)
    return loss_beyond(margin + _CORRECTION / prompts, least, 1.0, prompts, z_of_power(level))


def loss_beyond(margin: float, variance: float, step: float, samples: int, z: float) -> float:
    """The loss that lies `z` standard errors beyond the margin. `variance` is that of one sample without it.

    What is lost varies as well: of steps of the size `step` so many that they make up a loss L, the variance is L step.
    So L = margin + z sqrt((variance + L step) / samples).
    """

    half = z * z * step / (2 * samples)
    return margin + half + math.sqrt(half * half + z * z * (variance + margin * step) / samples)


def needed_samples(distance: float, error: float, samples: int, level: float) -> int | None:
    """About how many samples decide with a power of 0.8, if they go on like these `samples`.

    `distance` is how far the difference lies from the edge of the margin, `error` its standard error. None if it takes
    more than a million, or nobody can say.
    """
    if distance == 0:
        return None
    needed = samples * (z_of_power(level) * error / distance) ** 2
    return None if needed > _MOST_NEEDED else max(1, math.ceil(needed))
