"""The watch over whole rebuilds of the embedded model: a release that dies is given back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tasks.steps.watch import watch_key
from tasks.store.lease import Watch as Lease
from tasks.triton.config import LLM
from tasks.triton.placement import release_names
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow


WELL_S = 60 if os.environ.get("ENGINEHOUSE_TEST_LONG") else 5
"""For how long the watch has seen the release answer when it dies."""


def kill(house: House, model: str, release: int) -> None:
    """Kill the processes of a release's `llm` under the node's Triton."""
    code = f"{release_names(model, release)[LLM]}/"
    for each in psutil.Process(house.node().triton_pid).children(recursive=True):
        with suppress(psutil.Error):
            if code in " ".join(each.cmdline()):
                each.kill()


@pytest.mark.long
def test_a_release_that_dies_after_its_promotion_is_given_back(house: House, tmp_path: Path) -> None:
    own = replace(house, catalogue=tmp_path, environment={**house.environment, "ENGINEHOUSE_CATALOGUE": str(tmp_path)})

    def changed(slots: int) -> None:
        def change(document: dict[str, Any]) -> None:
            document["serving"]["slots"] = slots
            document["prompts"] = document["prompts"][:1]
            document["watch"] = {"for": 600 if slots == 3 else 10, "probe_every": 1}

        own.add_model("watched", change)

    changed(2)
    first = own.rebuild("watched")
    assert first["state"] == "promoted" and first["steps"][-1]["name"] == "watch"
    assert first["steps"][-1]["state"] in ("Undecided", "Healthy")
    changed(3)
    rebuilding = own.start("rebuild", "watched", "--json")
    own.wait_long(lambda: own.target.current("watched")[0].public not in (None, first["release"]), "promotion")
    release = own.target.current("watched")[0].public
    assert release is not None
    held = Lease(own.target.bucket, watch_key("local", "watched"), 5.0)
    own.wait_long(lambda: held.holder() is not None, "watch")
    time.sleep(WELL_S)

    for _ in range(4):  # a death may take Triton along, which once is no fault of the release
        kill(own, "watched", release)
        with suppress(subprocess.TimeoutExpired):
            rebuilding.wait(timeout=60 * PATIENCE)
            break
    output, errors = rebuilding.communicate(timeout=240 * PATIENCE)
    assert rebuilding.returncode == 3, (output, errors)
    returned = json.loads(output)
    assert (returned["state"], returned["error"]["code"]) == ("refused", "watch-returned")
    assert own.target.current("watched")[0].public == first["release"]
    listed = json.loads(own.run("releases", "watched", "--json"))["releases"]
    row = next(row for row in listed if row["release"] == release)
    assert row["watch"]["state"] == "returned" and row["watch"]["previous"] == first["release"]
    again = own.rebuild("watched", code=3)
    assert again["error"]["code"] == "watch-returned" and again["steps"][-1]["name"] == "roll_out"
