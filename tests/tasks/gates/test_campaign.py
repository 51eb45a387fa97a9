"""How often the gates refuse what is equal, and what is worse: thousands of rollouts, simulated over the gates' own
code.

    ENGINEHOUSE_TEST_ROLLOUTS=1000 pytest -s tests/tasks/gates/test_campaign.py
    ENGINEHOUSE_TEST_SEED=7 pytest -s tests/tasks/gates/test_campaign.py

A rollout has three gates, judged together: answers to 200 prompts of which 5 % flip, agreement on 64 passages, and the
first-token times of 60 prompts. What is worse is so by the loss that the verdicts on equal candidates say could have
been seen. A watch is looked at after every sample, and counts as refused if any look refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from tasks.gates.distributions import binomial_at_least, binomial_at_most
from tasks.gates.judge import judge, overall
from tasks.gates.means import compare_paired_means
from tasks.gates.proportions import compare_paired_answers
from tasks.gates.sequential import PairedProcess, Rate, RateProcess
from tasks.targets.gate_record import Comparison, Evidence, GateRecord, Verdict

ROLLOUTS = int(os.environ.get("ENGINEHOUSE_TEST_ROLLOUTS", "40"))
SEED = int(os.environ.get("ENGINEHOUSE_TEST_SEED", "0")) or int.from_bytes(os.urandom(4), "big")
ALPHA = 0.05
POWER = 0.8
SURE = 0.001
"""A share is significantly beyond its limit if it comes by chance less often than this."""

Draw = Callable[[np.random.Generator, float, float], Comparison]


def answers(random: np.random.Generator, loss: float, margin: float) -> Comparison:
    live = random.random(200) < 0.7
    flips = random.random(200) < 0.05
    lost = random.random(200) < loss / max(live.mean(), 0.01)
    candidate = np.where(flips, random.random(200) < 0.7, live) & ~(lost & live)
    ours, theirs = ([bool(each) for each in answered] for answered in (candidate, live))
    return compare_paired_answers("accuracy", ours, theirs, margin=margin, alpha=ALPHA)


def agreement(random: np.random.Generator, loss: float, margin: float) -> Comparison:
    """Of 16 positions of each passage, against what the live release itself agrees with when it is asked again."""
    hard = random.beta(20, 1, 64)
    live = random.binomial(16, hard) / 16
    candidate = random.binomial(16, np.clip(hard - loss, 0, 1)) / 16
    return compare_paired_means(
        "agreement", candidate.tolist(), live.tolist(), margin=margin, alpha=ALPHA, resolution=1 / 16
    )


def first_token(random: np.random.Generator, loss: float, margin: float) -> Comparison:
    """The logarithm of the time to the first token, per prompt: heavy-tailed, and alike for both on one prompt."""
    own = random.gamma(2, 0.5, 60)
    live, candidate = (own + random.standard_t(4, 60) * 0.15 for _ in range(2))
    return compare_paired_means(
        "first token",
        (candidate + loss).tolist(),
        live.tolist(),
        margin=margin,
        alpha=ALPHA,
        unit="nats",
        better="less",
    )


GATES: dict[str, tuple[Draw, float]] = {
    "answers": (answers, 0.05),
    "agreement": (agreement, 0.04),
    "first token": (first_token, 0.15),
}
"""Each with a margin that so many samples can decide."""


def rollout(
    random: np.random.Generator, worse: str = "", loss: float = 0, *, margins: bool = True
) -> tuple[Verdict, ...]:
    records = [
        GateRecord(
            gate=name.replace(" ", "-"),
            kind="simulated",
            candidate=2,
            live=1,
            evidence=Evidence(comparisons=(draw(random, loss if name == worse else 0, margin if margins else 0),)),
        )
        for name, (draw, margin) in GATES.items()
    ]
    return judge(records, ALPHA)


def line(what: str, share: float, limit: str, of: int = ROLLOUTS) -> None:
    print(f"{what:52} {100 * share:6.1f} %  of {of:5}   {limit}")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_false_alarms_and_power() -> None:
    random = np.random.default_rng(SEED)
    print(f"\nENGINEHOUSE_TEST_SEED={SEED} ENGINEHOUSE_TEST_ROLLOUTS={ROLLOUTS}")
    hard = [rollout(random, margins=False) for _ in range(ROLLOUTS)]
    refused = sum(overall(verdicts) == "refused" for verdicts in hard)
    line("equal, margins of zero: refused by any of three", refused / ROLLOUTS, "at most 5 %")
    equal = [rollout(random) for _ in range(ROLLOUTS)]
    refused_with_margins = sum(overall(verdicts) == "refused" for verdicts in equal)
    line("equal, within margins: refused by any of three", refused_with_margins / ROLLOUTS, "at most 5 %")
    line("equal, within margins: passed by all three", sum(overall(each) == "passed" for each in equal) / ROLLOUTS, "")
    found: list[tuple[str, int]] = []
    for place, name in enumerate(GATES):
        stated = [verdicts[place].decisive for verdicts in equal]
        loss = median(each.detectable for each in stated if each is not None and each.detectable is not None)
        worse = [rollout(random, name, loss) for _ in range(ROLLOUTS)]
        seen = sum(verdicts[place].state == "refused" for verdicts in worse)
        line(f"{name}: worse by the stated {loss:.3f}, refused by it", seen / ROLLOUTS, "at least 80 %")
        found.append((name, seen))
    assert binomial_at_least(refused, ROLLOUTS, ALPHA) > SURE
    assert binomial_at_least(refused_with_margins, ROLLOUTS, ALPHA) > SURE
    for name, seen in found:
        assert binomial_at_most(seen, ROLLOUTS, POWER) > SURE, name


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_at_the_edge_of_the_margin() -> None:
    """The hardest case of both hypotheses: what loses just the margin is refused, and passed, in 5 % at most."""
    random = np.random.default_rng(SEED + 1)
    found = [answers(random, loss=0.05, margin=0.05) for _ in range(4 * ROLLOUTS)]
    refused, passed = sum(each.p_worse <= ALPHA for each in found), sum(each.p_fine <= ALPHA for each in found)
    line("at the margin: refused by one gate", refused / len(found), "at most 5 %", len(found))
    line("at the margin: passed by one gate", passed / len(found), "at most 5 %", len(found))
    assert binomial_at_least(passed, len(found), ALPHA) > SURE
    assert binomial_at_least(refused, len(found), ALPHA) > SURE


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_watched_all_the_time() -> None:
    random = np.random.default_rng(SEED + 2)
    probes = np.array([-1.0, 0.0, 1.0])

    def probed(loss: float, looks: int, margin: float) -> bool:
        process = PairedProcess(margin)
        for gain in random.choice(probes, size=looks, p=[0.025 + loss, 0.95 - loss, 0.025]):
            process.observe(float(gain))
        return process.standing(ALPHA).p_worse <= ALPHA

    def served(rate: float, margin: float) -> bool:
        process = RateProcess(margin)
        for _ in range(20):
            ours, theirs = (int(random.binomial(n, p)) for n, p in ((40, rate), (360, 0.02)))
            process.observe(Rate(ours, 40), Rate(theirs, 360))
        return process.standing(ALPHA).p_worse <= ALPHA

    cases: dict[str, tuple[Callable[[], bool], float | None]] = {
        "equal, 150 paired probes, looked at after each": (lambda: probed(0, 150, 0), ALPHA),
        "loses its margin of 3 points, looked at after each": (lambda: probed(0.03, 150, 0.03), ALPHA),
        "loses 17 points more than that": (lambda: probed(0.2, 150, 0.03), None),
        "equal error rates, canary of 10 %, 20 looks": (lambda: served(0.02, 0), ALPHA),
        "2 points more errors, which the margin allows": (lambda: served(0.04, 0.02), ALPHA),
        "8 points more errors": (lambda: served(0.1, 0.01), None),
    }
    for what, (refuses, level) in cases.items():
        refused = sum(refuses() for _ in range(ROLLOUTS))
        line(f"watched: {what}", refused / ROLLOUTS, "at most 5 %" if level else "at least 80 %")
        if level:
            assert binomial_at_least(refused, ROLLOUTS, level) > SURE, what
        else:
            assert binomial_at_most(refused, ROLLOUTS, POWER) > SURE, what


def test_an_idle_endpoint_passes_nothing() -> None:
    """Without a sample there is no comparison: the step then notes a gap, and a gap is undecided."""
    evidence = Evidence(gaps=("no requests came",))
    record = GateRecord(gate="canary", kind="canary", candidate=2, live=1, evidence=evidence)
    assert [verdict.state for verdict in judge([record], ALPHA)] == ["undecided"]
    idle = RateProcess(0.01, bounds=True).standing(ALPHA)
    assert (idle.p_worse, idle.p_fine) == (1, 1)
