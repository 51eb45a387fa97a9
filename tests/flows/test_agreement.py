"""The agreement gate over whole rebuilds of the embedded model: fewer bits are refused, and the record says by what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_fewer_bits_are_refused_by_agreement(house: House, live: dict[str, Any], tmp_path: Path) -> None:
    own = replace(house, catalogue=tmp_path, environment={**house.environment, "ENGINEHOUSE_CATALOGUE": str(tmp_path)})

    def rebuilt(quantization: str, code: int = 0) -> dict[str, Any]:
        def change(document: dict[str, Any]) -> None:
            document["recipe"]["quantization"] = quantization
            document["prompts"] = document["prompts"][:1]
            document["gates"] = {"agreement": {"positions": 1}}

        own.add_model("agreed", change)
        return own.rebuild("agreed", code=code)

    first = rebuilt("q8_0")
    assert first["state"] == "promoted"
    refused = rebuilt("q4_0", code=3)
    assert (refused["state"], refused["error"]["code"]) == ("refused", "gate-refused")
    assert "agreement: next-token agreement" in refused["error"]["message"]
    assert own.target.current("agreed")[0].public == first["release"]
    listed = json.loads(own.run("releases", "agreed", "--json"))["releases"]
    row = next(row for row in listed if row["release"] == refused["release"])
    record = next(gate for gate in row["gates"] if gate["gate"] == "agreement")
    assert record["live"] == first["release"] and record["evidence"]["differing"]
