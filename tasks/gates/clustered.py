"""A proportion of things that come in groups, such as places in passages: those of one group are alike.

The bounds are those of Clopper and Pearson for as many independent samples as the data are worth (Korn and Graubard,
Survey Methodology 24, 1998): fewer, where groups differ by more than chance. They hold where hardly anything happens,
which is the usual case here; a mean of groups with its standard error would be too sure of itself then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.gates.distributions import beta_cdf, falling_root, t_quantile, z_of_power
from tasks.gates.proportions import needed_samples
from tasks.targets.gate_record import Comparison


@dataclass(frozen=True)
class Group:
    """Of so many things, these happened to be bad."""

    bad: int
    of: int


@dataclass(frozen=True)
class Worth:
    """So many independent samples as the groups are worth, with the share of them that is bad."""

    share: float
    samples: float

    @classmethod
    def of(cls, groups: Sequence[Group], alpha: float) -> Worth:
        """Their worth at the level `alpha`.

        The variance of the share is that of a ratio over groups; its few degrees of freedom cost by the square of
        Student's t. Raises ValueError for fewer than two groups.
        """
        if len(groups) < 2:
            raise ValueError("one group says nothing about how much groups differ")
        count, total = len(groups), sum(group.of for group in groups)
        share = sum(group.bad for group in groups) / total
        squares = sum((group.bad - share * group.of) ** 2 for group in groups)
        variance = count / (count - 1) * squares / total**2
        alone = share * (1 - share) / total
        samples = float(total) if variance <= alone else total * alone / variance
        cost = (t_quantile(1 - alpha, total - 1) / t_quantile(1 - alpha, count - 1)) ** 2
        return cls(share, max(1.0, samples * cost))

    @property
    def bad(self) -> float:
        return self.share * self.samples

    def at_least(self, share: float) -> float:
        """How probable so many bad ones, or more, are where `share` of all are."""
        return 1.0 if self.bad == 0 else beta_cdf(share, self.bad, self.samples - self.bad + 1)

    def at_most(self, share: float) -> float:
        """How probable so many bad ones, or fewer, are where `share` of all are."""
        return 1.0 if self.bad >= self.samples else 1 - beta_cdf(share, self.bad + 1, self.samples - self.bad)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """The one-sided lower and upper bounds of the share, each at `alpha`."""
        lower = falling_root(lambda share: alpha - self.at_least(share), 0.0, 1.0)
        upper = falling_root(lambda share: self.at_most(share) - alpha, 0.0, 1.0)
        return (0.0 if self.bad == 0 else lower), upper


def compare_losses(measure: str, groups: Sequence[Group], *, margin: float, alpha: float, things: str) -> Comparison:
    """The share that is not bad, against 1: a loss of all that is bad.

    `things` is what the samples are, as people say it. Raises ValueError for fewer than two groups.
    """
    worth = Worth.of(groups, alpha)
    lower, upper = worth.bounds(alpha)
    count, z = sum(group.of for group in groups), z_of_power(alpha)

    def excess(loss: float) -> float:
        return margin + z * math.sqrt(max(loss * (1 - loss), 1 / worth.samples) / worth.samples) - loss

    error = math.sqrt(max(worth.share * (1 - worth.share), 1 / worth.samples) / worth.samples)
    return Comparison(
        measure=measure,
        method=f"Clopper-Pearson, {count} {things} in {len(groups)} groups worth {worth.samples:.0f} independent ones",
        candidate=1 - worth.share,
        other=1.0,
        difference=-worth.share,
        lower=-upper,
        upper=-lower,
        margin=margin,
        p_worse=worth.at_least(margin),
        p_fine=worth.at_most(margin),
        samples=count,
        detectable=falling_root(excess, margin, 1.0),
        needed=needed_samples(margin - worth.share, error, count, alpha),
    )
