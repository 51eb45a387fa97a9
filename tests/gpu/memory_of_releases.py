"""Part 2: what a release takes of the GPU against what was planned, two beside each other, and memory that is short."""

from __future__ import annotations

import time

from tests.gpu.campaign import LARGE, Campaign
from tests.gpu.memory import BACK_MIB, MIB, filled, free_bytes, settled, used_bytes, waited_for
from tests.waiting import wait

_PLANNED_SHARE = 0.1
_HARMLESS_S = 1.0
"""By so much a request may take longer than this release lets it: another release, and the same weights."""


def run(campaign: Campaign) -> None:
    first = campaign.live(LARGE)
    second = _another(campaign, _HARMLESS_S)
    house, table = campaign.house, campaign.table
    states = house.loaded(LARGE)
    table.goal(
        "a second release beside the first",
        f"{first} {states.get(first)}, {second} {states.get(second)}",
        "both ready",
        states.get(first) == states.get(second) == "ready",
    )
    _unloaded(campaign, first)
    if not campaign.sizes.on_gpu:
        table.skipped("planned bytes against NVML's, memory that comes back, memory-short", "no GPU")
        return
    _short(campaign)


def _another(campaign: Campaign, longer_s: float) -> int:
    """A further release of the large model: equal weights, and another repository."""
    campaign.write(LARGE, request_timeout_s=120 + longer_s)
    report = campaign.house.rebuild(LARGE)
    assert report["state"] == "promoted", report
    return report["release"]


def _unloaded(campaign: Campaign, previous: int) -> None:
    """Have the previous release unloaded and loaded, again and again."""
    house, sizes = campaign.house, campaign.sizes
    loaded: list[int] = []
    left: list[int] = []
    seconds: list[float] = []
    base = 0
    for turn in range(sizes.unloads + 1):
        house.use(LARGE, previous=None)
        house.wait(lambda: previous not in house.loaded(LARGE), 120, "release unloaded")
        if sizes.on_gpu:
            if turn == 0:
                base = settled()
            else:
                left.append(waited_for(lambda used, base=base: used - base <= BACK_MIB * MIB, 20) - base)
        if turn == sizes.unloads:
            break
        began = time.monotonic()
        house.use(LARGE, previous=previous)
        house.wait(lambda: house.loaded(LARGE).get(previous) == "ready", 300, "release loaded")
        seconds.append(time.monotonic() - began)
        if sizes.on_gpu:
            loaded.append(used_bytes() - base)
    house.use(LARGE, previous=previous)
    house.wait(lambda: house.loaded(LARGE).get(previous) == "ready", 300, "release loaded")
    table = campaign.table
    table.figure("loaded again from the node's copy", f"{min(seconds):.1f} to {max(seconds):.1f} s")
    planned = campaign.planned_bytes(LARGE, previous)
    if not sizes.on_gpu:
        table.figure("planned bytes", f"{planned / MIB:.0f} MiB")
        return
    table.goal(
        "planned bytes against NVML's",
        f"planned {planned / MIB:.0f} MiB, taken {min(loaded) / MIB:.0f} to {max(loaded) / MIB:.0f} MiB",
        f"within {_PLANNED_SHARE:.0%}",
        all(abs(taken - planned) <= _PLANNED_SHARE * planned for taken in loaded),
    )
    table.goal(
        f"memory after unload, {sizes.unloads} times",
        f"{min(left) / MIB:.0f} to {max(left) / MIB:.0f} MiB beyond before",
        f"within {BACK_MIB} MiB",
        all(abs(more) <= BACK_MIB * MIB for more in left),
    )


def _short(campaign: Campaign) -> None:
    """Somebody else takes most of what is free: another release is refused before it loads, and can take the place."""
    house, table = campaign.house, campaign.table
    live = campaign.live(LARGE)
    needed = campaign.planned_bytes(LARGE, live)
    settled()
    with filled(free_bytes() - needed // 2):
        wait(lambda: house.node().machine.gpus[0].free_bytes < needed, "report of the filled GPU", 60)
        before, releases = used_bytes(), house.target.releases(LARGE)
        campaign.write(LARGE, request_timeout_s=120 + 2 * _HARMLESS_S)
        refused = house.rebuild(LARGE, code=1)
        code = refused.get("error", {}).get("code", "none")
        same = house.target.releases(LARGE) == releases and abs(used_bytes() - before) < BACK_MIB * MIB
        table.goal(
            "a release for which there is no room",
            f"{code}, {'nothing was loaded' if same else 'something was loaded'}",
            "memory-short before loading",
            code == "memory-short" and same and house.answers(LARGE),
        )
        done = house.rebuild(LARGE, "--recreate")
        table.goal(
            "the same with --recreate",
            f"{done['state']}, release {done['release']}",
            "promoted, and answers",
            done["state"] == "promoted" and house.answers(LARGE),
        )
