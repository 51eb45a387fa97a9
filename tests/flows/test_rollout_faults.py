"""Killed at whatever moment of a rollout with canary and watch: the name answers, and the next run mends it.

With ENGINEHOUSE_TEST_KILLS=20 there are 20 kills, at moments that ENGINEHOUSE_TEST_SEED draws.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from tasks.steps.watch import watch_key
from tasks.store.lease import Watch as Lease
from tasks.targets.traffic import traffic
from tests.flows.asking import ASKED, Client
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.long]

MODEL = "nightly"
KILLS = int(os.environ.get("ENGINEHOUSE_TEST_KILLS", "4"))
SEED = int(os.environ.get("ENGINEHOUSE_TEST_SEED", "1"))
VICTIMS = ("command", "worker-default", "node", "gateway")
ROLLOUT = {"strategy": "canary", "steps": [{"share": 0.5, "soak": "3s"}], "sticky": False}
WATCH = {"for": 10, "probe_every": 1}


def kill(house: House, victim: str) -> None:
    process = house.process(victim)
    below = process.children(recursive=True) if victim.startswith("worker") else []
    for each in (process, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


@pytest.mark.timeout(900 + 300 * KILLS)
def test_the_name_answers_whatever_is_killed(house: House) -> None:
    drawn = random.Random(SEED)

    def changed(slots: int) -> None:
        def change(document: dict[str, Any]) -> None:
            document["serving"]["slots"] = slots
            document["prompts"] = document["prompts"][:1]
            document["rollout"], document["watch"] = ROLLOUT, WATCH

        house.add_model(MODEL, change)

    changed(1)
    began = time.monotonic()
    assert house.rebuild(MODEL)["state"] == "promoted"
    whole = time.monotonic() - began
    client = Client(house.variables["ENGINEHOUSE_GATEWAY_HTTP"], MODEL)
    happened: Counter[str] = Counter()
    with client.asking():
        for number in range(KILLS):
            changed(2 + number % 2)
            victim, after = VICTIMS[number % len(VICTIMS)], drawn.uniform(0, whole)
            command = house.start("rebuild", MODEL, "--json")
            if victim == "worker-default":
                deployment = house.prefect("GET", "/deployments/name/rebuild/rebuild")["id"]
                command.kill()
                house.prefect("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {"model": MODEL}})
            time.sleep(after)
            client.gateway_away = victim == "gateway"
            if victim == "command":
                command.kill()
            else:
                kill(house, victim)
            house.run("up")
            client.gateway_away = False
            command.communicate(timeout=240 * PATIENCE)
            said = house.rebuild(MODEL)
            happened[f"{victim}: then {said['state']}"] += 1
            settled(house)
            ended = f"the command ended with {command.returncode}, and the next one {said['state']}"
            print(f"{number}: {victim} killed after {after:.0f} s, {ended}", flush=True)
    print(f"{dict(happened)}: {client.answered} answered")
    assert not client.failures, client.failures[:5]
    assert client.answered > KILLS


def settled(house: House) -> None:
    """The record is what the node serves, and nothing of a rollout is left over."""
    current, _ = house.target.current(MODEL)

    def serves() -> bool:
        report = house.node().models.get(MODEL)
        return report is not None and report.public == current.public and set(report.releases) == set(current.loaded)

    house.wait_long(serves, "node that serves what the record says")
    assert current.candidates == ()
    found, _ = traffic(house.target, MODEL).read()
    assert found is None or found.within(current).canary is None
    held = Lease(house.target.bucket, watch_key("local", MODEL), 5.0)
    house.wait_long(lambda: held.holder() is None, "end of the watch")
    url = f"{house.variables['ENGINEHOUSE_GATEWAY_HTTP']}/v2/models/{MODEL}@{current.public}/generate"
    assert httpx.post(url, json=ASKED, timeout=60, trust_env=False).status_code == 200
