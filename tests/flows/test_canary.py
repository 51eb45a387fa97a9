"""A canary in a whole rebuild: real requests at the stack's gateway go to both releases, and then to the new one."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tasks.targets.traffic import shift, traffic
from tests.flows.asking import Client
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

MODEL = "canaried"
SOAK_S = 6


def answered(house: House) -> dict[int, int]:
    """Requests of clients that the gateway has answered, by release."""
    told = httpx.get(f"{house.variables['ENGINEHOUSE_GATEWAY_HTTP']}/metrics", trust_env=False, timeout=60).text
    found = re.findall(rf'gateway_requests_total\{{.*model="{MODEL}",outcome="ok",release="(\d+)"\}} (\d+)', told)
    return {int(release): int(count) for release, count in found}


def test_a_canary_has_its_share_of_real_requests_and_then_the_name(house: House, live: dict[str, Any]) -> None:
    def changed(slots: int) -> None:
        def change(document: dict[str, Any]) -> None:
            document["serving"]["slots"] = slots
            document["prompts"] = document["prompts"][:1]
            document["rollout"] = {
                "strategy": "canary",
                "steps": [{"share": 0.5, "soak": f"{SOAK_S}s"}],
                "sticky": False,
            }

        house.add_model(MODEL, change)

    changed(2)
    first = house.rebuild(MODEL)
    assert first["state"] == "promoted" and shift(house.target, MODEL, first["release"]).read() is None
    changed(3)
    client = Client(house.variables["ENGINEHOUSE_GATEWAY_HTTP"], MODEL, every_s=0.1)
    with client.asking():
        rebuilding = house.start("rebuild", MODEL, "--json")
        house.wait_long(lambda: traffic(house.target, MODEL).read()[0].canary is not None, "canary")
        canary = traffic(house.target, MODEL).read()[0].canary
        assert canary is not None and canary.share == 0.5
        before = answered(house).get(first["release"], 0)

        def shared() -> bool:
            now = answered(house)
            return now.get(canary.release, 0) >= 3 and now.get(first["release"], 0) >= before + 3

        house.wait(shared, 2 * SOAK_S, "requests to both releases")
        assert house.target.current(MODEL)[0].public == first["release"], "and it has not been promoted yet"
        output, errors = rebuilding.communicate(timeout=240 * PATIENCE)
    assert rebuilding.returncode == 0, (output, errors)
    said = json.loads(output)
    assert (said["state"], said["release"]) == ("promoted", canary.release)
    assert {step["name"]: step["state"] for step in said["steps"]}["shift_traffic"] == "Completed"
    found = shift(house.target, MODEL, said["release"]).read()
    assert found is not None and (found.state, found.strategy, found.share) == ("passed", "canary", 0.5)
    assert "canary, 50.0% of the requests: passed" in house.run("releases", MODEL)
    assert not client.failures and client.answered > 20, client.failures[:3]
