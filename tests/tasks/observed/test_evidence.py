"""What traffic shows of a release, by simulation over the code that judges it.

ENGINEHOUSE_TEST_ROLLOUTS=1000 pytest -s tests/tasks/observed/test_evidence.py
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from tasks.gates.distributions import binomial_at_least, binomial_at_most
from tasks.observed.evidence import ENOUGH, Margins, SideBySide, SinceBefore, failed, measures, slower
from tasks.serving.figures import FIRST, GAP
from tasks.targets.observed import Observed

ROLLOUTS = int(os.environ.get("ENGINEHOUSE_TEST_ROLLOUTS", "8"))
SEED = int(os.environ.get("ENGINEHOUSE_TEST_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
ALPHA = 0.05
SURE = 0.001
"""A share is significantly beyond its limit if it comes by chance less often than this."""
MARGINS = Margins(errors=0.02, first_token=0.5, gap=0.5)
LOOKS, BLOCK = 15, 150


def buckets(times: npt.NDArray[np.float64], bounds: Sequence[float]) -> dict[str, int]:
    names = [*map(str, bounds), "+Inf"]
    places: list[int] = np.searchsorted(bounds, times).tolist()
    return dict(Counter(names[place] for place in places))


def seen(random: np.random.Generator, requests: int, *, errors: float = 0.01, slow: float = 1.0) -> Observed:
    """What clients see of so many requests, whose first tokens take 0.1 s in the middle and vary by a factor of two."""
    failures = int(random.binomial(requests, errors))
    answers = requests - failures
    first = slow * 0.1 * np.exp(0.7 * random.standard_normal(answers))
    gaps = slow * 0.02 * np.exp(0.3 * random.standard_normal(answers))
    return Observed(
        ended={"stop": answers, "internal": failures, "invalid": 7, "cancelled": 5},
        first=buckets(first, FIRST.buckets),
        gap=buckets(gaps, GAP.buckets),
    )


def watched(random: np.random.Generator, before: int, **worse: float) -> str:
    """The first measure that is shown to be worse, looked at after each block; empty if none ever is."""
    past = seen(random, before)
    asked = measures(past, MARGINS)
    level = ALPHA / len(asked)
    watch = SinceBefore(asked, past, level)
    for _ in range(LOOKS):
        watch.add(seen(random, BLOCK, **worse))
        for each in watch.comparisons():
            if each.p_worse <= level:
                return each.measure
    return ""


def beside(random: np.random.Generator, before: int, **worse: float) -> str:
    asked = measures(seen(random, before), MARGINS)
    both = SideBySide(asked)
    for _ in range(LOOKS):
        both.add(seen(random, BLOCK // 10, **worse), seen(random, BLOCK))
        for each in both.comparisons():
            if each.p_worse <= ALPHA / len(asked):
                return each.measure
    return ""


@pytest.fixture
def random() -> Iterator[np.random.Generator]:
    print(f"seed {SEED}")
    yield np.random.default_rng(SEED)


@pytest.mark.parametrize("before", [60, 2000])
def test_an_equal_release_is_kept(random: np.random.Generator, before: int) -> None:
    found = [watched(random, before) for _ in range(ROLLOUTS)]
    returned = len([each for each in found if each])
    assert binomial_at_least(returned, ROLLOUTS, ALPHA) > SURE, Counter(found)


@pytest.mark.parametrize(
    ("worse", "measure"),
    [({"errors": 0.06}, "failed requests"), ({"slow": 4.0}, "beyond"), ({"errors": 0.5}, "failed requests")],
)
def test_a_worse_release_is_returned(random: np.random.Generator, worse: dict[str, float], measure: str) -> None:
    found = [watched(random, 2000, **worse) for _ in range(ROLLOUTS)]
    right = len([each for each in found if measure in each])
    assert binomial_at_most(right, ROLLOUTS, 0.8) > SURE, Counter(found)


def test_a_canary_is_judged_beside_what_is_live(random: np.random.Generator) -> None:
    rollouts = max(6, ROLLOUTS // 4)
    equal = len([each for each in (beside(random, 500) for _ in range(rollouts)) if each])
    assert binomial_at_least(equal, rollouts, ALPHA) > SURE
    for worse, measure in (({"errors": 0.3}, "failed requests"), ({"slow": 6.0}, "beyond")):
        found = [beside(random, 500, **worse) for _ in range(rollouts)]
        assert binomial_at_most(len([each for each in found if measure in each]), rollouts, 0.8) > SURE, found


def test_sums_say_the_same_as_each_look(random: np.random.Generator) -> None:
    past = seen(random, 500)
    asked = measures(past, MARGINS)
    watched, late = (SinceBefore(asked, past, 0.01) for _ in range(2))
    total = Observed()
    for _ in range(5):
        gained = seen(random, 40, errors=0.2)
        watched.add(gained)
        total += gained
    late.add(total)
    for one, other in zip(watched.comparisons(), late.comparisons(), strict=True):
        assert one.p_worse <= other.p_worse * 1.0001, "the lowest of all looks counts"
        assert (one.samples, one.candidate) == (other.samples, other.candidate)


def test_what_a_client_does_is_no_failure() -> None:
    observed = Observed(
        ended={"stop": 6, "length": 2, "cancelled": 50, "invalid": 9, "context-length": 3, "deadline": 2}
    )
    assert (failed(observed).events, failed(observed).requests) == (2, 10)


def test_late_is_decided_by_what_the_other_one_showed() -> None:
    times = {"0.08": 60, "0.15": 35, "0.6": 4, "+Inf": 1}
    assert (slower(times, 0.15).events, slower(times, 0.15).requests) == (5, 100)
    found = measures(Observed(ended={"stop": 100}, first=times), Margins(0.02, 0.5, 0.5))
    assert [each.name for each in found] == [
        "failed requests", "first tokens beyond 0.15 s", "first tokens beyond 0.3 s"
    ]  # fmt: skip
    few = Observed(first={"0.08": ENOUGH - 1})
    assert len(measures(few, Margins(0.02, 0.5))) == 1, "too few to know what is late"
    assert len(measures(Observed(first=times), Margins(0.02))) == 1, "not asked for"


def test_without_anything_before_no_traffic_is_worse_and_none_is_fine(random: np.random.Generator) -> None:
    watch = SinceBefore(measures(Observed(), MARGINS), Observed(), 0.05)
    assert watch.comparisons() == ()
    watch.add(seen(random, 200, errors=1.0))
    (only,) = watch.comparisons()
    assert (only.p_worse, only.p_fine) == (1.0, 1.0)
