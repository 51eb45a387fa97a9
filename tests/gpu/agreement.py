"""Of part 6: the small model rounded to FP8, against its release in bfloat16 and the reference of its weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.settings import CHECKOUT
from tests.gpu import gate_records
from tests.gpu.campaign import SMALL, Campaign
from tests.gpu.house import worker
from tests.gpu.own_kind import rounded

_MODEL = "judged"
_TEXTS = tuple(
    f"The answer to question {number} is {word}, and the next word of it is short."
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight"))
)
"""Of tests on the CPU. On the GPU the gate has its own passages."""


def run(campaign: Campaign) -> None:
    rounded.register()
    house = campaign.house
    folders = (str(Path(rounded.__file__).parent), str(CHECKOUT), house.environment.get("PYTHONPATH", ""))
    python_path = os.pathsep.join(filter(None, folders))
    knowing = replace(house, environment={**house.environment, "PYTHONPATH": python_path})
    aware = replace(campaign, house=knowing)
    plain = dict(campaign.sizes.recipe)
    _judge(aware, f"{plain['dtype']}, the first release", plain)
    checkpoint = campaign.folder / "checkpoints" / "smollm2"
    scales = str(checkpoint) if any(checkpoint.glob("*.safetensors")) else ""
    by = "with ModelOpt's scales" if scales else "with a scale for each matrix"
    with worker(knowing, campaign.folder, rounded.POOL):
        _judge(aware, f"weights in FP8 {by}, inputs as they are", plain | {"kind": rounded.KIND, "scales": scales})


def _judge(campaign: Campaign, what: str, recipe: dict[str, Any]) -> None:
    """The verdict is a finding, whatever it is. What must be is that there is one, against all that was asked for."""
    house = campaign.house
    beside = {"reference"} if house.target.current(_MODEL)[0].public is None else {"reference", "live"}
    campaign.write_as(_MODEL, SMALL, {"recipe": recipe, "gates": _asked(campaign)})
    report = house.gated(_MODEL)
    record, verdict = gate_records.judged(house.release(_MODEL, report["release"]), "agreement")
    found = record.evidence.comparisons
    seconds = {step["name"]: step["seconds"] for step in report["steps"]}
    campaign.table.goal(
        f"agreement: {what}; the whole gate {record.seconds:.0f} s, its reference {seconds.get('reference', 0):.0f} s",
        f"{verdict.state}, {verdict.samples} places: "
        + "; ".join(f"against {each.against} {each.candidate:.3f}, {gate_records.told(each)}" for each in found),
        f"judged against {' and '.join(sorted(beside))}",
        {each.against for each in found} == beside,
    )


def _asked(campaign: Campaign) -> dict[str, Any]:
    # Few places decide little, and the first release has to be public for the second one.
    asked: dict[str, Any] = {"reference": "always"}
    if not campaign.sizes.on_gpu:
        texts = campaign.folder / "passages.txt"
        texts.write_text("\n\n".join(_TEXTS))
        asked |= {"passages": {"uri": f"file://{texts}"}, "positions": 2}
    return {"undecided": "promote", "agreement": asked}
