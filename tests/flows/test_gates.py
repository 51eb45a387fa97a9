"""A gate that a user adds decides over a whole rebuild, with no change in the flows, beside one that is built in."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.settings import CHECKOUT

if TYPE_CHECKING:
    from tests.flows.conftest import House

PASSAGES = [
    {"text": f"The answer to question {number} is short: {word} comes before the next word of this sentence."}
    for number, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight"])
]
pytestmark = pytest.mark.slow


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
        listed = json.loads(own.run("releases", "judged", "--json"))
        return next(row for row in listed["releases"] if row["release"] == report["release"])

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
    few = {"passages": {"uri": f"file://{tmp_path}/passages.jsonl"}, "positions": 1}
    promoted = rebuilt(3, "undecided", undecided="promote", agreement=few)
    assert promoted["state"] == "promoted"
    assert {step["name"]: step["state"] for step in promoted["steps"]}["validate"] == "Undecided"
    assert own.target.current("judged")[0].public == promoted["release"]
    assert "undecided obedience, 50 samples" in own.run("releases", "judged")
    record = next(gate for gate in released(promoted)["gates"] if gate["gate"] == "agreement")
    (compared,) = record["evidence"]["comparisons"]
    assert record["live"] == first["release"] and compared["difference"] == 0 and compared["samples"] == len(PASSAGES)
