"""Proportions of things in groups: against known bounds, and by simulation at the edge of the margin."""

from __future__ import annotations

import random

import pytest

from tasks.gates.clustered import Group, Worth, compare_losses
from tasks.gates.proportions import clopper_pearson


def test_groups_that_do_not_differ_have_almost_the_bounds_of_single_samples() -> None:
    groups = [Group(1, 4)] * 64
    lower, upper = Worth.of(groups, 0.05).bounds(0.05)
    exact = clopper_pearson(64, 256, 0.05)
    assert lower == pytest.approx(exact[0], abs=0.002) and upper == pytest.approx(exact[1], abs=0.002)
    assert lower < exact[0] and upper > exact[1]


def test_groups_that_are_all_bad_or_all_good_are_worth_one_sample_each() -> None:
    worth = Worth.of([Group(4, 4)] * 16 + [Group(0, 4)] * 48, 0.05)
    assert worth.share == 0.25 and worth.samples == pytest.approx(64, rel=0.05)


def test_nothing_bad_leaves_what_so_many_samples_could_have_missed() -> None:
    compared = compare_losses("m", [Group(0, 4)] * 64, margin=0.05, alpha=0.05, things="places")
    # The rule of three: 3 / 256 are not excluded.
    assert compared.lower == pytest.approx(-3 / 256, rel=0.1) and compared.upper == 0
    assert compared.p_fine < 1e-5 and compared.p_worse == 1
    assert compared.detectable is not None and 0.05 < compared.detectable < 0.12


def test_all_bad_is_refused_at_any_level() -> None:
    compared = compare_losses("m", [Group(4, 4)] * 8, margin=0.05, alpha=0.05, things="places")
    assert compared.p_worse < 1e-9 and compared.p_fine == 1 and compared.candidate == 0


def test_one_group_says_nothing() -> None:
    with pytest.raises(ValueError):
        Worth.of([Group(0, 4)], 0.05)


@pytest.mark.parametrize("concentration", [1, 2, 4])
def test_at_the_edge_of_the_margin_it_passes_and_refuses_no_more_often_than_its_level(concentration: int) -> None:
    """The loss is the margin, all of it in one of so many groups: 1,500 rounds were 2.2 to 4.3 % each way."""
    seeded, margin, rounds, passed, refused = random.Random(concentration), 0.05, 100, 0, 0
    for _ in range(rounds):
        groups: list[Group] = []
        for _ in range(64):
            loss = concentration * margin * (seeded.random() < 1 / concentration)
            groups.append(Group(sum(seeded.random() < loss for _ in range(4)), 4))
        worth = Worth.of(groups, 0.05)
        passed += worth.at_most(margin) <= 0.05
        refused += worth.at_least(margin) <= 0.05
    # Of a test of 5 %, more than 11 of 100 come once in a hundred times.
    assert passed <= 11 and refused <= 11
