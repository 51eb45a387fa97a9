"""A gate that a user adds decides over a whole rebuild, with no change in the flows, beside one that is built in."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.settings import CHECKOUT
from tasks.explain.releases import releases
from tasks.targets.approvals import Approvals

if TYPE_CHECKING:
    from tests.flows.conftest import House

PASSAGES = [
    {"text": f"The answer to question {number} is short: {word} comes before the next word of this sentence."}
    for number, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight"])
]
pytestmark = pytest.mark.slow


def listed(house: House, model: str) -> list[dict[str, Any]]:
    """What `enginehouse releases --json` prints of the model's releases, without a process for each look."""
    return json.loads(json.dumps(releases(house.target, model).document()))["releases"]


def test_verdicts_end_a_rebuild(house: House, live: dict[str, Any], tmp_path: Path) -> None:
    knowing = {
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests" / "own_kind"), str(CHECKOUT)]),
        "ENGINEHOUSE_CATALOGUE": str(tmp_path),
    }
    own = replace(house, catalogue=tmp_path, environment={**house.environment, **knowing})

    def rebuilt(slots: int, finds: str, code: int = 0, **gates: Any) -> dict[str, Any]:
        def change(document: dict[str, Any]) -> None:
            document["serving"]["slots"] = slots
            document["prompts"] = document["prompts"][:1]
            document["gates"] = {"obedience": {"gate": "told", "finds": finds}, **gates}

        own.add_model("judged", change)
        return own.rebuild("judged", code=code)

    def released(report: dict[str, Any]) -> dict[str, Any]:
        return next(row for row in listed(own, "judged") if row["release"] == report["release"])

    first = rebuilt(2, "passed")
    assert first["state"] == "promoted"
    asked = rebuilt(3, "undecided", code=4)
    assert (asked["state"], asked["error"]["code"]) == ("undecided", "gate-undecided")
    assert "obedience: obedience 80 %" in asked["error"]["message"] and "undecided: promote" in asked["error"]["hint"]
    row = released(asked)
    assert (row["state"], row["loaded"], row["result"]["undecided"]) == ("undecided", True, "ask")
    assert row["gates"][1]["evidence"]["comparisons"][0]["margin"] == 0.1
    assert own.target.current("judged")[0].public == first["release"] and own.ask("judged")

    refused = rebuilt(3, "refused", code=3)
    assert refused["release"] > asked["release"] and refused["state"] == "refused"
    assert not released(asked)["loaded"]  # another section of gates has the candidate gated anew

    (tmp_path / "passages.jsonl").write_text("\n".join(map(json.dumps, PASSAGES)))
    few = {
        "passages": {"uri": f"file://{tmp_path}/passages.jsonl"},
        "positions": 1,
        "reference": "always",
        "reference_margin": 0.5,
    }
    promoted = rebuilt(3, "undecided", undecided="promote", agreement=few)
    assert promoted["state"] == "promoted"
    states = {step["name"]: step["state"] for step in promoted["steps"]}
    assert (states["reference"], states["validate"]) == ("Completed", "Undecided")
    assert own.target.current("judged")[0].public == promoted["release"]
    assert "undecided obedience, 50 samples" in own.run("releases", "judged")
    record = next(gate for gate in released(promoted)["gates"] if gate["gate"] == "agreement")
    compared = {each["against"]: each for each in record["evidence"]["comparisons"]}
    assert compared.keys() == {"live", "reference"} and record["live"] == first["release"]
    assert compared["live"]["difference"] == 0 and compared["live"]["samples"] == len(PASSAGES)


def test_a_person_decides(house: House, live: dict[str, Any]) -> None:
    name = "approved"

    def written(slots: int, hours: float = 24) -> None:
        def change(document: dict[str, Any]) -> None:
            document["serving"]["slots"] = slots
            document["prompts"] = document["prompts"][:1]
            document["approval"] = {"when": "always", "timeout_hours": hours}

        house.add_model(name, change)

    def started(deployment: str, **parameters: Any) -> str:
        known = house.prefect("GET", f"/deployments/name/{deployment}/{deployment}")["id"]
        return house.prefect("POST", f"/deployments/{known}/create_flow_run", {"parameters": parameters})["id"]

    def state(run: str) -> tuple[str, str]:
        found = house.prefect("GET", f"/flow_runs/{run}")["state"]
        return found["type"], found["name"]

    def newest() -> dict[str, Any]:
        return listed(house, name)[0]

    # A run of the deployment waits without a process: its worker is killed, and the approval is given meanwhile.
    written(2)
    run = started("rebuild", model=name)
    house.wait_long(lambda: state(run) == ("COMPLETED", "Waiting"), "run that waits")
    house.process("worker-default").kill()
    (shown,) = house.prefect(
        "POST",
        "/artifacts/filter",
        {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": [f"approval-{name}-local"]}}},
    )
    form = house.prefect("GET", "/deployments/name/approve/approve")["id"]
    assert (
        f"(../../deployments/deployment/{form}/run?parameters=" in shown["data"]
        and "| smoke | passed |" in shown["data"]
    )
    current, _ = house.target.current(name)
    assert newest()["state"] == "waiting" and (current.public, current.candidates) == (None, (1,))
    told = json.loads(house.run("approve", name, "--note", "good figures", "--json"))
    assert told["state"] == "approved" and told["first"] and "@" in told["by"]
    house.run("up")
    house.wait_long(lambda: state(told["flow_run"])[0] == "COMPLETED", "run that promotes")
    assert state(told["flow_run"])[1] == "Completed" and house.ask(name)
    assert f"was approved by {told['by']}: good figures" in house.run("releases", name)

    # A rebuild of the command line ends with 4 and the next command; the form rejects.
    written(3)
    waiting = house.rebuild(name, code=4)
    assert (waiting["state"], waiting["error"]["code"]) == ("waiting", "approval-needed")
    assert f"enginehouse approve {name} --target local" in waiting["error"]["hint"]
    run = started("approve", model=name, decision="reject", by="form@ui", note="its French is worse")
    house.wait_long(lambda: state(run) == ("COMPLETED", "Completed"), "rejection")
    rejected = newest()
    assert (rejected["state"], rejected["approval"]["by"], rejected["loaded"]) == ("refused", "form@ui", False)
    house.run("approve", name, "--release", str(waiting["release"]), code=2)

    # Nobody decides.
    written(3, hours=0.002)
    late = house.rebuild(name, code=4)
    house.wait(lambda: Approvals(house.target, name, late["release"]).decision() is not None, 60, "time-out")
    refused = house.rebuild(name, code=3)
    assert refused["release"] == late["release"] and refused["error"]["code"] == "approval-timed-out"
    current, _ = house.target.current(name)
    assert (current.public, current.candidates) == (1, ())
