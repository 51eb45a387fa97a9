"""Whether clients fare worse with a release than with another one, at the same time or before: looked at all the time.

Three things are measured: requests that failed, first tokens that came late, and tokens that came slowly. What is late
is decided before the first request of the release is seen, from what the other one showed. Times are in buckets, so
"no slower than 1.5 times" is asked as: of ours, no more are beyond a bound than of theirs are beyond a bound that is
1.5 times lower, or lower still. So a release of equal times never seems slower, and one is seen to be once it is slower
by about a bucket, a factor of two, more than what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.gates.proportions import clopper_pearson
from tasks.gates.sequential import PairedProcess, Rate, RateProcess, Standing
from tasks.serving.figures import ANSWERED, FIRST, GAP
from tasks.targets.gate_record import Comparison
from tasks.targets.observed import Observed

FAILED = ("unavailable", "deadline", "internal")
"""Endings that are no client's doing. Requests that were refused for what they ask are in no rate, and neither are
those whose clients left."""
ENOUGH = 50
"""Times that the other release must have shown before its own are a measure: below, its 95th percentile is unknown."""
_QUANTILES = (0.5, 0.95)

Counting = Callable[[Observed], Rate]


@dataclass(frozen=True)
class Margins:
    """What may be lost: `errors` of all requests; times may be longer by the other two. None: not measured."""

    errors: float
    first_token: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class Measure:
    """One thing that may be worse: how many requests of the candidate, and of the other release, are bad in it."""

    name: str
    candidate: Counting
    other: Counting
    margin: float


def failed(observed: Observed) -> Rate:
    """The requests that failed, of those that were answered or failed."""
    failures = sum(observed.ended.get(ending, 0) for ending in FAILED)
    return Rate(failures, failures + sum(observed.ended.get(ending, 0) for ending in ANSWERED))


def slower(times: Mapping[str, int], than_s: float) -> Rate:
    """Of times in buckets, by the buckets' upper bounds, those beyond `than_s`, which is such a bound."""
    return Rate(sum(count for bound, count in times.items() if float(bound) > than_s), sum(times.values()))


def measures(other: Observed, margins: Margins) -> tuple[Measure, ...]:
    """What to measure of a release, by what the `other` one has shown."""
    found = [Measure("failed requests", failed, failed, margins.errors)]
    if margins.first_token is not None:
        found += _late("first tokens", lambda observed: observed.first, other, FIRST.buckets, margins.first_token)
    if margins.gap is not None:
        found += _late("times between tokens", lambda observed: observed.gap, other, GAP.buckets, margins.gap)
    return tuple(found)


def _late(
    what: str, times: Callable[[Observed], Mapping[str, int]], other: Observed, bounds: Sequence[float], loss: float
) -> list[Measure]:
    """Two bounds that candidates are held to: at the middle of the other release's times, and near their end."""
    shown = times(other)
    if sum(shown.values()) < ENOUGH:
        return []
    found: dict[float, Measure] = {}
    for quantile in _QUANTILES:
        theirs = next((bound for bound in bounds if _beyond(shown, bound) <= 1 - quantile), None)
        if theirs is None or (ours := next((each for each in bounds if each >= theirs * (1 + loss)), None)) is None:
            continue
        found[ours] = Measure(
            f"{what} beyond {ours:g} s",
            lambda observed, ours=ours: slower(times(observed), ours),
            lambda observed, theirs=theirs: slower(times(observed), theirs),
            0.0,
        )
    return [*found.values()]


def _beyond(times: Mapping[str, int], bound: float) -> float:
    rate = slower(times, bound)
    return rate.events / rate.requests


class SideBySide:
    """Two releases that clients ask at the same time: a canary and what is live."""

    def __init__(self, asked: Sequence[Measure]) -> None:
        self._processes = [(each, RateProcess(each.margin)) for each in asked]

    def add(self, candidate: Observed, other: Observed) -> None:
        """Take what has come of both since the last call."""
        for measure, process in self._processes:
            process.observe(measure.candidate(candidate), measure.other(other))

    def comparisons(self) -> tuple[Comparison, ...]:
        """What may be said now, whenever that is. Measures of which both have not been seen yet are left out."""
        return tuple(
            _comparison(measure, process.candidate, process.live, process.standing(0.05), "two rates, anytime-valid")
            for measure, process in self._processes
            if process.candidate.requests
        )


class SinceBefore:
    """One release, against what another one had shown `before` the first request of this one.

    What was before is known with an error of its own: the candidate is held to the exact bound of the rate, of which
    half the level is spent. The other half is that of the bet that its own rate is no higher. The bet goes by the
    numbers alone, so whoever reads all of them at once comes to the same as one who watched.
    """

    def __init__(self, asked: Sequence[Measure], before: Observed, level: float) -> None:
        self._rates = [_AgainstBound(each, each.other(before), level / 2) for each in asked]

    def add(self, gained: Observed) -> None:
        """Take what has come since the last call."""
        for each in self._rates:
            each.add(each.measure.candidate(gained))

    def comparisons(self) -> tuple[Comparison, ...]:
        """What may be said now, whenever that is; `p_worse` may be held against the level."""
        return tuple(each.comparison() for each in self._rates if each.seen.requests)


class _AgainstBound:
    """One rate, against the bounds of one that is known from before."""

    def __init__(self, measure: Measure, before: Rate, level: float) -> None:
        self.measure, self.before, self.seen = measure, before, Rate(0, 0)
        low, high = clopper_pearson(before.events, before.requests, level)
        # At a bound of 1 nothing is too much, and there is nothing to bet against.
        self._high = PairedProcess(high + measure.margin) if high + measure.margin < 1 else None
        self._low = PairedProcess(low + measure.margin)

    def add(self, rate: Rate) -> None:
        if not rate.requests:
            return
        self.seen = self.seen + rate
        gains = [(-1.0, rate.events), (0.0, rate.requests - rate.events)]
        for process in (self._high, self._low):
            if process is not None:
                process.observe_together(gains)

    def comparison(self) -> Comparison:
        worse = 1.0 if self._high is None else self._high.standing(0.05).p_worse
        standing = Standing(
            p_worse=min(1.0, 2 * worse),
            p_fine=min(1.0, 2 * self._low.standing(0.05).p_fine),
            lower=-1.0,
            upper=1.0,
        )
        method = f"anytime-valid, against the bound of {self.before.requests} requests before"
        return _comparison(self.measure, self.seen, self.before, standing, method)


def _comparison(measure: Measure, ours: Rate, theirs: Rate, standing: Standing, method: str) -> Comparison:
    candidate, other = (rate.events / max(1, rate.requests) for rate in (ours, theirs))
    return Comparison(
        measure=measure.name,
        method=method,
        candidate=candidate,
        other=other,
        difference=other - candidate,
        lower=None,
        upper=None,
        margin=measure.margin,
        p_worse=standing.p_worse,
        p_fine=standing.p_fine,
        samples=ours.requests,
    )
