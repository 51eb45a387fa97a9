"""The release watch by its schedule: real Prefect, workers, store and index; the toolchain alone is the stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tasks.watch.record import read_record
from tests.flows.build_worker import PRODUCT
from tests.flows.build_worker import worker as build_worker
from tests.index_server import IndexServer, index_server
from tests.standin import toolchain, weights
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OLD, NEW = "1.1.0", "1.2.1"
FLEET = ("fleet-a", "fleet-b", "fleet-canary", "fleet-d")

# `enginehouse watch --dry-run`, that asks the indexes again at once and not after 2, 10 and 30 s.
WITHOUT_PAUSES = """
import sys
from infra import settings

settings.activate()
from deployments.cli.main import main
from flows import watch_releases

watch_releases._published.retry_delay_seconds = [0.1, 0.1, 0.1]
sys.exit(main(["watch", "--dry-run"]))
"""


@pytest.fixture
def index(house: House) -> Iterator[IndexServer]:
    """An index that has the old version, and is the only one that the stack's pip knows."""
    configuration, images = house.home.parent / "pip.conf", house.home.parent / "images.toml"
    with index_server() as server:
        server.release(OLD)
        configuration.write_text(f"[global]\nindex-url = {server.url}\nextra-index-url =\n")
        images.write_text(
            "".join(
                f'[[image]]\nreference = "triton:{version}"\ntensorrt_llm = "{version}"\n'
                for version in (OLD, NEW, "1.2.2", "1.3.0")
            )
        )
        yield server
    configuration.unlink()
    images.unlink()


@pytest.fixture
def fleet(house: House, tmp_path: Path) -> Iterator[None]:
    """Four models that take stable releases, and one that is pinned."""
    limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
    runtime = {"tensorrt_llm": OLD, "gpu": PRODUCT, "arch": "sm90", "gpus": 4}
    made: list[Path] = []
    for name in (*FLEET, "fleet-pinned"):
        stable = {"policy": "stable", "canary": True} if name == "fleet-canary" else {"policy": "stable"}
        document = {
            "name": name,
            "source": {"uri": f"file://{weights.make(tmp_path / name, seed=name)}"},
            "recipe": {"kind": "trt-engine", "runtime": runtime, **limits},
            # No node of this stack has TensorRT-LLM.
            "targets": [],
            "updates": {"policy": "pinned"} if name == "fleet-pinned" else stable,
            "prompts": [{"name": "count", "text": "Count to nine.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
        }
        made.append(house.catalogue / f"{name}.yaml")
        made[-1].write_text(yaml.safe_dump(document))
    yield
    for path in made:
        path.unlink()


@pytest.fixture
def worker(house: House, fleet: None, tmp_path: Path) -> Iterator[toolchain.Toolchain]:
    """A build worker whose image has the new version, on the pool that the catalogue asks for."""
    house.environment["ENGINEHOUSE_WATCH_SCHEDULE"] = "* * * * *"
    house.run("deploy")
    with build_worker(house, tmp_path, NEW) as made:
        yield made
    house.environment["ENGINEHOUSE_WATCH_SCHEDULE"] = "never"
    house.run("deploy")
    del house.environment["ENGINEHOUSE_WATCH_SCHEDULE"]


def rebuilds(house: House) -> list[dict[str, Any]]:
    """What the watch has started, in the order in which it began to run."""
    runs = house.prefect("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["release-watch"]}}})
    return sorted(runs, key=lambda run: run["start_time"] or "9")


def tables(house: House) -> list[list[dict[str, Any]]]:
    """Every table that was shown, newest first."""
    wanted = {"artifacts": {"key": {"any_": ["release-watch"]}}, "sort": "CREATED_DESC"}
    return [json.loads(each["data"]) for each in house.prefect("POST", "/artifacts/filter", wanted)]


def watches(house: House) -> int:
    """How many runs of the watch have completed."""
    wanted = {
        "flows": {"name": {"any_": ["watch_releases"]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    return int(house.prefect("POST", "/flow_runs/count", wanted))


def after_watches(house: House, count: int) -> None:
    until = watches(house) + count
    house.wait_long(lambda: watches(house) >= until, f"{count} runs of the watch", 600)


@pytest.mark.long
def test_a_version_appears_and_the_fleet_follows_its_canary(
    house: House, index: IndexServer, worker: toolchain.Toolchain
) -> None:
    after_watches(house, 1)
    assert rebuilds(house) == [] and index.requests
    (quiet,) = tables(house)
    # Other tests have left models of kind llamacpp.
    assert {line["verdict"] for line in quiet} == {"unaffected"} and quiet[0]["models"] == 5

    # From now on only the schedule and the end of each rebuild start the watch.
    worker.fail("gpu-memory", "trtllm-build")
    index.release("1.3.0")
    index.release("1.2.3")
    index.release("1.2.2", yanked="wrong answers")
    index.release(NEW)
    house.wait_long(lambda: any(run["state_type"] == "FAILED" for run in rebuilds(house)), "failed canary", 600)
    after_watches(house, 1)
    (failed,) = rebuilds(house)
    # A person's build would go before it.
    (build,) = house.builds_of("fleet-canary")
    assert build["work_queue_name"] == "later"
    assert failed["parameters"]["model"] == "fleet-canary" and failed["parameters"]["runtime"] == NEW
    shown = {(line["version"], line["verdict"]): line for line in tables(house)[0]}
    assert shown["1.3.0", "kind changes"]["models"] == 4
    assert shown["1.2.3", "not yet available as image"]["models"] == 4
    assert any(line["reason"] == "withdrawn from the index: wrong answers" for line in tables(house)[0])
    held = {line["names"]: line["reason"] for line in tables(house)[0] if line["version"] == NEW}
    assert held["fleet-canary"].startswith("its rebuild failed: ")
    assert "the canary fleet-canary failed" in held["fleet-a, fleet-b, fleet-d"]
    assert shown["1.3.0", "held back"]["names"] == "fleet-pinned"

    worker.fail("")
    retried = json.loads(house.run("watch", "--retry", "fleet-canary", "--json"))
    assert [start["model"] for start in retried["starts"]] == ["fleet-canary"]
    house.wait_long(
        lambda: set(read_record(house.store.bucket)[0].followed) == set(FLEET), "fleet on the new version", 600
    )
    first, second, *rest = rebuilds(house)
    assert first["state_type"] == "FAILED" and second["parameters"]["model"] == "fleet-canary"
    assert sorted(run["parameters"]["model"] for run in rest) == ["fleet-a", "fleet-b", "fleet-d"]
    assert all(run["start_time"] > second["end_time"] for run in rest)
    assert {run["state_type"] for run in (second, *rest)} == {"COMPLETED"}

    # A rebuild by hand takes the version that the model was moved to; the file still says the old one.
    again = house.rebuild("fleet-a")
    assert {step["state"] for step in again["steps"] if step["name"] != "resolve"} == {"Cached"}

    # Nothing new: no rebuild and no table, however often it is looked.
    after_watches(house, 1)
    before = (len(rebuilds(house)), len(tables(house)))
    asked = len(index.requests)
    after_watches(house, 2)
    assert (len(rebuilds(house)), len(tables(house))) == before and len(index.requests) > asked


def test_an_index_that_is_away_fails_the_watch_and_changes_nothing(
    house: House, index: IndexServer, fleet: None
) -> None:
    before = read_record(house.store.bucket)[0]
    index.broken = True
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PAUSES],
        env=house.environment,
        capture_output=True,
        text=True,
        timeout=200 * PATIENCE,
    )
    assert done.returncode == 1 and "[source-unavailable]" in done.stderr
    after = read_record(house.store.bucket)[0]
    assert (after.followed, after.attempts) == (before.followed, before.attempts)
