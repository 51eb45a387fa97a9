from __future__ import annotations

import math
from random import Random

import pytest

from tasks.gates.performance.ratios import compare_ratios
from tasks.targets.gate_record import Comparison

ALPHA = 0.05


def rounds(ratio: float, random: Random, count: int = 12, prompts: int = 10) -> list[list[float]]:
    """Prompts that vary by a quarter, in rounds that vary by 6 %."""
    return [
        [shift + random.gauss(0, 0.25) for _ in range(prompts)]
        for shift in (math.log(ratio) + random.gauss(0, 0.06) for _ in range(count))
    ]


def compare(found: list[list[float]], margin: float = 0.1) -> Comparison:
    return compare_ratios("time_to_first_token", found, margin=margin, alpha=ALPHA, seed=1)


def test_half_the_speed_is_worse_and_the_same_speed_is_fine() -> None:
    worse, fine = compare(rounds(2, Random(1))), compare(rounds(1, Random(1)))
    assert worse.candidate == pytest.approx(2, rel=0.1) and worse.difference == pytest.approx(-1, abs=0.2)
    assert worse.p_worse < 0.001 and worse.p_fine > 0.99 and worse.upper is not None and worse.upper < -0.1
    assert fine.p_fine < ALPHA and fine.lower is not None and fine.lower > -0.1
    assert (worse.samples, worse.other) == (120, 1.0)


def test_bounds_say_what_the_p_values_say() -> None:
    random = Random(4)
    for _ in range(20):
        found = compare(rounds(random.uniform(0.9, 1.3), random))
        assert found.lower is not None and found.upper is not None and found.lower < found.difference < found.upper
        assert (found.p_fine <= ALPHA) == (found.lower > -0.1) or abs(found.lower + 0.1) < 0.002
        assert (found.p_worse <= ALPHA) == (found.upper < -0.1) or abs(found.upper + 0.1) < 0.002


def test_what_never_varies_is_decided_by_itself() -> None:
    equal, twice = compare([[0.0] * 4] * 8), compare([[math.log(2)] * 4] * 8)
    assert equal.p_fine < 0.001 < equal.p_worse and twice.p_worse < 0.001 < twice.p_fine


def test_too_few_rounds_are_no_evidence() -> None:
    with pytest.raises(ValueError, match="6 rounds"):
        compare(rounds(1, Random(1), count=5))


@pytest.mark.slow
def test_the_levels_are_kept_and_the_detectable_loss_is_detected() -> None:
    """At the edge of the margin 5 % are refused and 5 % pass; what is said to be detectable is refused 8 times in 10.

    The bounds are those of 400 draws: 2.6 standard errors of a binomial.
    """
    random, draws = Random(8), 400
    edge = [compare(rounds(1.1, random)) for _ in range(draws)]
    assert sum(each.p_worse <= ALPHA for each in edge) / draws < 0.08
    assert sum(each.p_fine <= ALPHA for each in edge) / draws < 0.08
    detectable = sum(each.detectable or 0 for each in edge) / draws
    worse = [compare(rounds(1 + detectable, random)) for _ in range(draws)]
    refused = sum(each.p_worse <= ALPHA for each in worse) / draws
    print(f"a loss of {detectable:.3f} is refused in {refused:.1%} of {draws}")
    assert refused > 0.75
