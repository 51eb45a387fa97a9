"""Several gates that can each refuse: together they refuse an equal candidate no more often than one of them may."""

from __future__ import annotations

from collections.abc import Sequence


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which each hypothesis may be rejected, in the order of `p_values` (Holm, 1979).

    The smallest p-value of k is held against alpha / k, the next against alpha / (k - 1), and so on to the first that
    is not below its level; that one's level holds for all after it. A hypothesis is rejected if its p-value is at most
    its level.
    """
    levels = [alpha] * len(p_values)
    level = alpha
    stopped = False
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if not stopped:
            level = alpha / (len(p_values) - place)
            stopped = p_values[index] > level
        levels[index] = level
    return levels
