"""Tests and bounds of the gates, against tabulated values, enumeration, and what they promise."""

from __future__ import annotations

import math

import pytest

from tasks.gates.distributions import binomial_at_least, binomial_at_most, t_cdf, t_quantile
from tasks.gates.holm import holm_levels
from tasks.gates.means import compare_paired_means
from tasks.gates.proportions import (
    clopper_pearson,
    compare_paired_answers,
    compare_with_floor,
    detectable_loss,
    paired_bounds,
    paired_p_values,
)
from tasks.gates.sequential import PairedProcess, Rate, RateProcess


@pytest.mark.parametrize(("n", "k", "p"), [(10, 3, 0.2), (50, 40, 0.7), (200, 1, 0.01), (30, 0, 0.5), (30, 30, 0.9)])
def test_binomial_tails_are_sums(n: int, k: int, p: float) -> None:
    at_least = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    at_most = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert binomial_at_least(k, n, p) == pytest.approx(at_least, abs=1e-12)
    assert binomial_at_most(k, n, p) == pytest.approx(at_most, abs=1e-12)


def test_quantiles_of_t_are_those_of_the_tables() -> None:
    tables = {(0.95, 4): 2.132, (0.975, 30): 2.042, (0.99, 10): 2.764, (0.95, 1): 6.314, (0.05, 4): -2.132}
    for (probability, degrees), value in tables.items():
        assert t_quantile(probability, degrees) == pytest.approx(value, abs=5e-4)
    assert t_cdf(0, 7) == 0.5


def test_clopper_pearson_is_that_of_the_tables() -> None:
    assert clopper_pearson(5, 10, 0.025) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert clopper_pearson(0, 59, 0.05)[1] == pytest.approx(1 - 0.05 ** (1 / 59))  # a 95th percentile needs 59
    assert clopper_pearson(0, 10, 0.05)[0] == 0 and clopper_pearson(10, 10, 0.05)[1] == 1
    assert clopper_pearson(0, 0, 0.05) == (0, 1)


def test_mcnemar_is_exact() -> None:
    p_worse, p_fine = paired_p_values(9, 1, 100, 0)
    assert (p_worse, p_fine) == pytest.approx((11 / 1024, 1023 / 1024))
    assert paired_p_values(0, 0, 50, 0) == (1, 1)


def test_the_score_test_keeps_its_level_at_the_margin() -> None:
    """By enumeration of all tables of 60 prompts, for a candidate that loses exactly the margin."""
    n = 60
    for margin, flips in ((0.02, 0.05), (0.05, 0.06), (0.05, 0.2)):
        q_better, q_worse = (flips - margin) / 2, (flips + margin) / 2
        refused = passed = 0.0
        for worse in range(25):
            for better in range(25 - worse):
                ways = math.comb(n, worse) * math.comb(n - worse, better)
                rest = (1 - q_better - q_worse) ** (n - worse - better)
                probability = ways * q_worse**worse * q_better**better * rest
                p_worse, p_fine = paired_p_values(worse, better, n, margin)
                refused += probability * (p_worse <= 0.05)
                passed += probability * (p_fine <= 0.05)
        assert refused < 0.055 and passed < 0.055


def test_bounds_say_what_the_p_values_say() -> None:
    for worse, better in ((12, 3), (5, 5), (0, 4), (3, 0)):
        lower, upper = paired_bounds(worse, better, 200, 0.05)
        assert lower < (better - worse) / 200 < upper
        for margin in (0.01, 0.03, 0.05, 0.08):
            p_worse, p_fine = paired_p_values(worse, better, 200, margin)
            assert (lower > -margin) is (p_fine < 0.05) and (upper < -margin) is (p_worse < 0.05)


def test_paired_answers() -> None:
    right = [True] * 150 + [False] * 50
    lost = [False] * 30 + [True] * 120 + [False] * 50
    found = compare_paired_answers("accuracy", lost, right, margin=0.02, alpha=0.05)
    assert (found.candidate, found.other, found.difference) == (0.6, 0.75, -0.15)
    assert found.p_worse < 0.001 and found.upper is not None and found.upper < -0.02 and found.samples == 200
    same = compare_paired_answers("accuracy", right, right, margin=0.05, alpha=0.05)
    assert same.p_fine < 0.05 and same.lower is not None and same.lower > -0.05
    few = compare_paired_answers("accuracy", right[-20:], right[-20:], margin=0.05, alpha=0.05)
    assert few.p_fine > 0.05 and few.needed is not None and few.needed > 20  # nothing seen in 20 is no proof
    exact = compare_paired_answers("accuracy", lost, right, margin=0, alpha=0.05)
    assert exact.p_worse == pytest.approx(0.5**30) and exact.upper is not None and exact.upper < 0
    for ours, theirs in (([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="pairs"):
            compare_paired_answers("accuracy", ours, theirs, margin=0, alpha=0.05)


def test_detectable_losses_are_those_of_the_facts() -> None:
    """3.9 points with 200 prompts of which 5 % differ, were these 5 % all there is; what is lost differs as well."""
    assert 0.039 < detectable_loss(0.05, 200, 0, 0.05) < 0.065
    assert detectable_loss(0.05, 200, 0.02, 0.05) > 0.02 + detectable_loss(0.05, 800, 0, 0.05)
    assert detectable_loss(0.05, 200, 0, 0.01) > detectable_loss(0.05, 200, 0, 0.05)


def test_a_floor() -> None:
    high = compare_with_floor("accuracy", 90, 100, 0.8, alpha=0.05)
    low = compare_with_floor("accuracy", 60, 100, 0.8, alpha=0.05)
    near = compare_with_floor("accuracy", 81, 100, 0.8, alpha=0.05)
    assert high.p_fine < 0.05 and low.p_worse < 0.05 and min(near.p_fine, near.p_worse) > 0.05
    assert near.needed is not None and near.needed > 1000
    with pytest.raises(ValueError, match="no samples"):
        compare_with_floor("accuracy", 0, 0, 0.8, alpha=0.05)


def test_paired_means() -> None:
    live = [0.9, 1.0, 0.8, 0.95, 1.0, 0.85, 0.9, 1.0]
    same = compare_paired_means("agreement", live, live, margin=0.05, alpha=0.05, resolution=1 / 16)
    assert same.p_fine < 0.05 and same.lower is not None and -0.05 < same.lower < 0 < same.p_worse
    worse = compare_paired_means("agreement", [each - 0.2 for each in live], live, margin=0.05, alpha=0.05)
    assert worse.p_worse < 1e-9 and worse.difference == pytest.approx(-0.2)  # every item lost the same
    slower = compare_paired_means(
        "latency",
        [1.2, 1.3, 1.25, 1.4, 1.2],
        [1.0, 1.0, 1.05, 1.1, 1.0],
        margin=0.1,
        alpha=0.05,
        unit="s",
        better="less",
    )
    assert slower.difference == pytest.approx(-0.24) and slower.p_worse < 0.05
    with pytest.raises(ValueError, match="5 items"):
        compare_paired_means("agreement", live[:4], live[:4], margin=0, alpha=0.05)


def test_holm() -> None:
    """The example of Holm's procedure: 0.01 and 0.012 fall of four, and 0.03 stops the rest."""
    p_values = [0.03, 0.01, 0.2, 0.012]
    levels = holm_levels(p_values, 0.05)
    assert levels == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])
    assert [p <= level for p, level in zip(p_values, levels, strict=True)] == [False, True, False, True]
    assert holm_levels([], 0.05) == [] and holm_levels([0.04], 0.05) == [0.05]


def test_a_paired_watch_sees_a_loss_and_its_margin() -> None:
    losing, within = PairedProcess(0), PairedProcess(0.2, bounds=True)
    for number in range(200):
        gain = -1 if number % 10 == 0 else 0
        losing.observe(gain)
        within.observe(gain)
    assert losing.standing(0.05).p_worse < 0.001 and losing.standing(0.05).p_fine > 0.5
    standing = within.standing(0.05)
    assert standing.p_worse > 0.5 and standing.p_fine < 0.05
    assert -0.2 < standing.lower < -0.1 < standing.upper <= 0
    with pytest.raises(ValueError, match="between -1 and 1"):
        losing.observe(1.5)


def test_a_watch_of_rates() -> None:
    process = RateProcess(0, bounds=True)
    process.observe(Rate(0, 10), Rate(0, 0))  # waits for the other
    assert process.candidate.requests == 0
    process.observe(Rate(0, 0), Rate(0, 90))
    assert (process.candidate, process.live) == (Rate(0, 10), Rate(0, 90))
    for _ in range(30):
        process.observe(Rate(3, 50), Rate(0, 50))
    standing = process.standing(0.05)
    assert standing.p_worse < 0.001 and standing.lower < -0.06 < standing.upper < 0
    empty = RateProcess(0, bounds=True).standing(0.05)
    assert (empty.p_worse, empty.p_fine, empty.lower, empty.upper) == (1, 1, -1, 1)
    with pytest.raises(ValueError, match="3 of 2"):
        Rate(3, 2)
