"""Part 1: the whole rebuild with the real flow, from the source to the public name, and then nothing to do."""

from __future__ import annotations

import time
from typing import Any

from tests.gpu.campaign import LARGE, SMALL, Campaign

BUILT = ("fetch", "convert", "build", "upload", "assemble")


def run(campaign: Campaign) -> None:
    for model in (SMALL, LARGE):
        _rebuilt(campaign, model)


def _rebuilt(campaign: Campaign, model: str) -> None:
    table, house = campaign.table, campaign.house
    began = time.monotonic()
    campaign.write(model)
    size = sum(path.stat().st_size for path in campaign.weights(model).glob("*.safetensors"))
    table.figure(f"{model}: weights made", f"{size / 2**30:.2f} GiB, {_minutes(time.monotonic() - began)}")
    began = time.monotonic()
    first = house.rebuild(model)
    seconds = time.monotonic() - began
    steps = ", ".join(f"{step['name']} {_minutes(step['seconds'])}" for step in first["steps"])
    table.goal(
        f"{model}: fetch to promote", f"{first['state']} after {_minutes(seconds)}", "promoted", _is(first, "promoted")
    )
    table.figure(f"{model}: by step", steps)
    table.goal(f"{model}: asked by its public name", "answers", "answers", house.answers(model))
    began = time.monotonic()
    again = house.rebuild(model)
    states = {step["name"]: step["state"] for step in again["steps"]}
    table.goal(
        f"{model}: rebuilt once more",
        f"{', '.join(f'{name} {states.get(name)}' for name in BUILT)}; {again['state']}"
        f" after {time.monotonic() - began:.1f} s",
        "all Cached, unchanged",
        {states.get(name) for name in BUILT} == {"Cached"} and _is(again, "unchanged"),
    )


def _is(report: dict[str, Any], state: str) -> bool:
    return report["state"] == state


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.2f} min"
