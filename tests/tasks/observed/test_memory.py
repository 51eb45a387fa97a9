"""Memory that keeps growing, by simulation over the code that judges it.

ENGINEHOUSE_TEST_ROLLOUTS=1000 pytest tests/tasks/observed/test_memory.py
"""

from __future__ import annotations

import os
from itertools import permutations

import numpy as np
import pytest

from tasks.gates.distributions import binomial_at_least, binomial_at_most
from tasks.observed.memory import GrowthProcess, Memory
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport

ROLLOUTS = int(os.environ.get("ENGINEHOUSE_TEST_ROLLOUTS", "60"))
SEED = int(os.environ.get("ENGINEHOUSE_TEST_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
ALPHA = 0.05
SURE = 0.001
MIB = 1 << 20
LASTS = 1800.0


@pytest.fixture
def random() -> np.random.Generator:
    print(f"seed {SEED}")
    return np.random.default_rng(SEED)


def found(values: list[float]) -> float:
    process = GrowthProcess()
    for value in values:
        process.add(value)
    return process.p_worse


def test_the_bet_is_worth_one_on_average_at_any_order() -> None:
    """Of all orders of six values: exactly, and the share of those in which it is ever worth k is at most 1/k."""
    worths = [found([float(each) for each in order]) for order in permutations(range(6))]
    for times in (2, 5, 20):
        assert np.mean([p <= 1 / times for p in worths]) <= 1 / times
    assert min(worths) == found([1, 2, 3, 4, 5, 6]) < 0.05
    assert found([3, 3, 3, 3, 3]) == 1.0, "what stays is no growth"


def report(node: str, held: int) -> NodeReport:
    releases = {7: ReleaseReport(state="ready", memory_bytes=held)}
    return NodeReport.model_construct(node=node, models={"tiny": ModelReport(public=7, releases=releases)})


def watched(random: np.random.Generator, grows_mib: float, *, nodes: int = 2, share: float = 0.2) -> float:
    """The p-value of a release that begins with some 2 GiB, takes 300 MiB more at once, and what requests take."""
    memory = Memory("tiny", 7, share, LASTS)
    for second in range(0, int(LASTS), 15):
        warm = 300 * (1 - np.exp(-second / 60)) + grows_mib * second / LASTS
        noise = random.gamma(2, 30, nodes)
        memory.look([report(f"n{at}", int((2048 + warm + noise[at]) * MIB)) for at in range(nodes)], float(second))
    (comparison,) = memory.comparisons()
    return comparison.p_worse


def test_false_alarms_and_power(random: np.random.Generator) -> None:
    of = max(4, ROLLOUTS // 10)
    alarms = sum(watched(random, 0) <= ALPHA for _ in range(of))
    allowed = sum(watched(random, 300) <= ALPHA for _ in range(of))
    leaks = sum(watched(random, 2000) <= ALPHA / 8 for _ in range(of))
    print(f"of {of}: {alarms} that hold it, {allowed} that grow by what is allowed, {leaks} that leak")
    assert binomial_at_least(alarms, of, ALPHA) > SURE and binomial_at_least(allowed, of, ALPHA) > SURE
    assert binomial_at_most(leaks, of, 0.8) > SURE


def test_exchangeable_values_raise_no_more_alarms_than_they_may(random: np.random.Generator) -> None:
    alarms = sum(found(random.standard_normal(40).tolist()) <= ALPHA for _ in range(ROLLOUTS))
    print(f"{alarms} of {ROLLOUTS}")
    assert binomial_at_least(alarms, ROLLOUTS, ALPHA) > SURE


def test_what_no_node_knows_is_not_compared() -> None:
    memory = Memory("tiny", 7, 0.2, LASTS)
    for second in range(0, 600, 5):
        memory.look([report("old", 0), NodeReport.model_construct(node="other", models={})], float(second))
    assert memory.comparisons() == ()
