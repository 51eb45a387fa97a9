"""Minutes of a rebuild by step, and seconds of each gate, on an embedded stack of its own.

The first release is made from nothing. The second has the same engine in half the slots, so all gates should pass; it
is told how long each took, on how many samples.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.flows.conftest import House

MODEL = "gated"
GATES = {
    "undecided": "promote",
    "agreement": None,
    "quality": None,
    # Short answers: two cores make some 40 tokens a second, and each prompt is asked of both releases.
    "performance": {"requests": 80, "rounds": 8, "prompt_tokens": "uniform:16,48", "answer_tokens": "uniform:8,16"},
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        own = {"ENGINEHOUSE_HOME": str(folder / "home"), "ENGINEHOUSE_CATALOGUE": str(folder / "models")}
        house = House(folder / "home", folder / "models", kept | own)
        try:
            house.run("up")
            return measure(house)
        finally:
            house.run("down")


def measure(house: House) -> int:
    rebuilt: list[dict[str, Any]] = []
    for slots in (8, 4):

        def change(document: dict[str, Any], slots: int = slots) -> None:
            document["serving"]["slots"] = slots
            document["gates"] = GATES

        house.add_model(MODEL, change)
        process = house.start("rebuild", MODEL, "--json")
        output, errors = process.communicate()  # gates that pass take as long as they take: no time limit of a test
        assert process.returncode == 0, errors
        rebuilt.append(json.loads(output))
    releases = json.loads(house.run("releases", MODEL, "--json"))["releases"]
    print("\nA rebuild by step, in seconds: from nothing, then with other slots")
    for first, second in zip(*(each["steps"] for each in rebuilt), strict=True):
        print(f"  {first['name']:10} {first['seconds']:7.1f} {second['seconds']:7.1f} {second['state']}")
    print("Gates of the second")
    newest = next(each for each in releases if each["release"] == rebuilt[1]["release"])
    verdicts = {each["gate"]: each for each in newest["result"]["gates"]}
    for gate in newest["gates"]:
        verdict = verdicts[gate["gate"]]
        print(f"  {gate['gate']:12} {gate['seconds']:7.1f} s, {verdict['samples']:5} samples: {verdict['state']}")
    return int(any(each["state"] == "refused" for each in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
