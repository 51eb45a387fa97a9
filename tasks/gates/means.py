"""Means of the same items, measured of two releases: the paired t-test of non-inferiority."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tasks.gates.distributions import NORMAL, POWER, t_cdf, t_quantile
from tasks.gates.proportions import loss_beyond, needed_samples
from tasks.targets.gate_record import Comparison

FEWEST_ITEMS = 5
"""Below that the t-test rests on its assumptions alone."""


def compare_paired_means(
    measure: str,
    candidate: Sequence[float],
    other: Sequence[float],
    *,
    margin: float,
    alpha: float,
    unit: str = "",
    better: Literal["more", "less"] = "more",
    against: Literal["live", "reference"] = "live",
    resolution: float = 0.0,
) -> Comparison:
    """The mean over items, such as the agreement of each passage, by Student's t of the differences.

    Items must be independent of each other: what belongs together is one item. `resolution` is the smallest amount by
    which an item can change. Two items are added for it, one that much better and one that much worse: items that do
    not differ at all say little of those that come seldom, and without these two the error would be zero. Values and
    margin are in `unit`; with `better` "less" a lower mean is a gain.

    Raises ValueError for fewer than FEWEST_ITEMS items, or sequences of different lengths.
    """
    if len(candidate) != len(other) or len(candidate) < FEWEST_ITEMS:
        raise ValueError(f"a paired mean needs {FEWEST_ITEMS} items or more, and two values of each")
    ours, theirs = np.asarray(candidate, dtype=float), np.asarray(other, dtype=float)
    gains = ours - theirs if better == "more" else theirs - ours
    items = len(gains)
    spread = np.concatenate([gains, [resolution, -resolution]]) if resolution else gains
    mean, error = float(gains.mean()), float(spread.std(ddof=1)) / math.sqrt(items)
    below, above = _tails(mean + margin, error, items - 1)
    quantile = t_quantile(1 - alpha, items - 1)
    return Comparison(
        measure=measure,
        method=f"paired t, {items} items",
        unit=unit,
        against=against,
        candidate=float(ours.mean()),
        other=float(theirs.mean()),
        difference=mean,
        lower=mean - quantile * error,
        upper=mean + quantile * error,
        margin=margin,
        p_worse=below,
        p_fine=above,
        samples=items,
        detectable=loss_beyond(margin, error * error * items, resolution, items, quantile + NORMAL.inv_cdf(POWER)),
        needed=needed_samples(mean + margin, error, items, alpha),
    )


def _tails(distance: float, error: float, degrees: int) -> tuple[float, float]:
    """How probable a distance this low, and this high, is if it is zero in truth."""
    if error == 0:
        return float(distance >= 0), float(distance <= 0)
    t = distance / error
    return t_cdf(t, degrees), t_cdf(-t, degrees)
