"""Part 6: the gates of a rollout: performance under an open load, a canary beside clients, and FP8 against bfloat16."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tasks.gates.proportions import clopper_pearson
from tasks.targets.traffic import shift, traffic
from tests.gpu import agreement, gate_records
from tests.gpu.campaign import LARGE, Campaign
from tests.gpu.clients import Clients
from tests.waiting import wait

_ANOTHER_S = 300.0
"""How long a request may take: another one makes another release of the same weights."""
_LEVEL = 0.0005
"""Of each end of the interval in which the share of a canary lies: one run in a thousand is outside."""


def run(campaign: Campaign) -> None:
    """One gate's trouble must not hide what becomes of the next."""
    for what, part in (("performance", _performance), ("canary", _canary), ("agreement", agreement.run)):
        try:
            part(campaign)
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"
            campaign.table.goal(f"{what} ran to its end", said, "yes", met=False)


def _performance(campaign: Campaign) -> None:
    """The large model against a release of the same weights."""
    house = campaign.house
    campaign.live(LARGE)
    asked = {"undecided": "promote", "performance": dict(campaign.sizes.gating.performance)}
    campaign.write(LARGE, {"gates": asked}, request_timeout_s=_ANOTHER_S)
    report = house.gated(LARGE)
    record, verdict = gate_records.judged(house.release(LARGE, report["release"]), "performance")
    campaign.table.goal(
        f"performance, the same weights: {verdict.samples} requests to each, the whole gate {record.seconds:.0f} s",
        f"{verdict.state}: {'; '.join(map(gate_records.told, record.evidence.comparisons))}",
        "passed" if campaign.sizes.on_gpu else "not refused",
        # A CPU that other programs use too is now fast and now slow: times of it seldom decide anything.
        verdict.state == "passed" or (verdict.state == "undecided" and not campaign.sizes.on_gpu),
    )
    shown = (each for each in record.evidence.figures if each.live is not None and each.unit in ("ms", "requests/s"))
    figures = ", ".join(f"{each.name} {each.candidate:.3g} and {each.live:.3g} {each.unit}" for each in shown)
    campaign.table.figure("performance: candidate and live", f"{figures}; {'; '.join(record.evidence.notes)}")


def _canary(campaign: Campaign) -> None:
    """A release of the same weights, with a share of what clients ask without a pause."""
    house, table, sizes = campaign.house, campaign.table, campaign.sizes
    gating = sizes.gating
    campaign.live(LARGE)
    steps = [{"share": gating.share, "soak": gating.soak_s}]
    rollout = {"strategy": "canary", "steps": steps, "sticky": False}
    campaign.write(LARGE, {"rollout": rollout}, request_timeout_s=_ANOTHER_S + 1)
    address = house.variables["ENGINEHOUSE_GATEWAY_HTTP"]
    with Clients(address, LARGE, sizes.clients, gating.answer_tokens) as clients:
        process = house.start("rebuild", LARGE, "--json")
        try:
            wait(lambda: process.poll() is not None or _canary_of(campaign) is not None, "canary", 120)
            given, release = time.monotonic(), _canary_of(campaign)
            assert release is not None, "no canary was given any requests"
            time.sleep(gating.settled_s)
            before = _answered(address, release)
            time.sleep(max(0.0, given + gating.soak_s - 0.5 - time.monotonic()))
            after = _answered(address, release)
        finally:
            report = house.report(process, codes=(0, 3))
    taken, others = (end - begin for begin, end in zip(before, after, strict=True))
    of, failures = taken + others, clients.failures
    low, high = clopper_pearson(taken, of, _LEVEL)
    judgement = shift(house.target, LARGE, release).read()
    table.goal(
        f"canary, {gating.share:.0%} of the requests of {sizes.clients} clients for {gating.soak_s:g} s",
        f"{taken} of {of} were its own, {taken / max(of, 1):.1%} ({low:.1%} to {high:.1%}); judged "
        f"{'nothing' if judgement is None else f'{judgement.state} {judgement.reason}'.strip()}, {report['state']}",
        "the share within its interval, passed, promoted",
        low <= gating.share <= high
        and judgement is not None
        and judgement.state == "passed"
        and report["state"] == "promoted"
        and house.target.current(LARGE)[0].public == release,
    )
    table.goal(
        "clients meanwhile, before and after",
        f"{len(clients.answers)} answers, {len(failures)} failed {failures[:1] or ''}",
        "0 failed",
        bool(clients.answers) and not failures,
    )
    seconds = {step["name"]: step["seconds"] for step in report["steps"]}
    shown = (f"{name} {seconds.get(name, 0):.1f} s" for name in ("roll_out", "validate", "shift_traffic", "promote"))
    table.figure("canary by step", ", ".join(shown))


def _canary_of(campaign: Campaign) -> int | None:
    """The candidate that gets requests now."""
    target = campaign.house.target
    known, _ = traffic(target, LARGE).read()
    canary = known.within(target.current(LARGE)[0]).canary
    return None if canary is None else canary.release


def _answered(gateway: str, release: int) -> tuple[int, int]:
    return answered(httpx.get(f"{gateway}/metrics", timeout=30, trust_env=False).text, release)


def answered(figures: str, release: int) -> tuple[int, int]:
    """How many requests for the large model the gateway has seen to their end: of this release, and of others."""
    samples = (each for family in text_string_to_metric_families(figures) for each in family.samples)
    ours = others = 0
    for sample in samples:
        if sample.name == "enginehouse_gateway_requests_total" and sample.labels["model"] == LARGE:
            is_ours = sample.labels["release"] == str(release)
            ours, others = ours + int(sample.value) * is_ours, others + int(sample.value) * (not is_ours)
    return ours, others
