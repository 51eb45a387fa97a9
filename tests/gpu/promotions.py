"""Part 3: the public name moves while clients ask it without a pause."""

from __future__ import annotations

import time
from statistics import median

from tests.gpu.campaign import LARGE, Campaign
from tests.gpu.clients import Clients, p99

_STANDING_S = 15.0
"""Before the first promotion, and after the last."""


def run(campaign: Campaign) -> None:
    house, sizes, table = campaign.house, campaign.sizes, campaign.table
    releases = [campaign.live(LARGE)]
    spans: list[tuple[float, float]] = []
    pause = _STANDING_S if sizes.on_gpu else 1.0
    with Clients(house.variables["ENGINEHOUSE_GATEWAY_HTTP"], LARGE, sizes.clients, sizes.answer_tokens) as clients:
        time.sleep(pause)
        for number in range(sizes.promotions):
            began = time.monotonic()
            if number < sizes.rebuilt:
                campaign.write(LARGE, request_timeout_s=200 + number)
                report = house.rebuild(LARGE)
                assert report["state"] == "promoted", report
                releases.append(report["release"])
            else:
                releases.append(releases[-2])  # the one before, which is still loaded
                house.run("rollback", LARGE, "--to", str(releases[-1]))
            spans.append((began, time.monotonic()))
            time.sleep(pause / 5)
        time.sleep(pause)
    failures = clients.failures
    table.goal(
        f"{sizes.clients} clients during {sizes.promotions} promotions, {sizes.rebuilt} of them of new releases",
        f"{len(clients.answers)} answers, {len(failures)} failed {failures[:1] or ''}",
        "0 failed",
        bool(clients.answers) and not failures,
    )
    moving, standing = (clients.first_tokens(spans, inside=inside) for inside in (True, False))
    if moving and standing:
        table.figure(
            "first token, standing and moving",
            f"p50 {median(standing):.2f} and {median(moving):.2f} s, p99 {p99(standing):.2f} and {p99(moving):.2f} s"
            f" ({len(standing)} and {len(moving)} answers)",
        )
