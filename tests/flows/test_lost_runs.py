"""What becomes of runs whose machinery dies, or that somebody cancels: real Prefect, workers and store."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from tasks.store.artifact import ArtifactRef
from tasks.store.lease import Watch
from tests.flows.build_worker import POOL, PRODUCT, register
from tests.flows.build_worker import worker as build_worker
from tests.processes import processes_with
from tests.standin import weights

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"


def start(house: House, **parameters: Any) -> str:
    """A rebuild as the UI starts it; the id of its run."""
    deployment = house.prefect("GET", "/deployments/name/rebuild/rebuild")
    run = house.prefect("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    return run["id"]


def state(house: House, run: str) -> str:
    return house.prefect("GET", f"/flow_runs/{run}")["state_type"]


def processes(house: House) -> list[psutil.Process]:
    """The workers of the stack, and the runs below them."""
    workers = [house.process(f"worker-{pool}") for pool in ("default", "build-cpu")]
    return [*workers, *(child for worker in workers for child in worker.children(recursive=True))]


@pytest.fixture
def quick_heartbeats(house: House) -> Iterator[None]:
    """The stack with heartbeats as often as Prefect can; other tests load the machine, and keep the usual ones."""
    house.run("down")
    house.environment["ENGINEHOUSE_HEARTBEAT_SECONDS"] = "30"
    house.run("up")
    yield
    del house.environment["ENGINEHOUSE_HEARTBEAT_SECONDS"]
    house.run("down")
    house.run("up")


@pytest.mark.long
def test_worker_and_flow_are_killed_and_the_rebuild_starts_again(
    house: House, live: dict[str, Any], quick_heartbeats: None
) -> None:
    house.wait(lambda: bool(house.target.nodes()), 60, "report of the node")
    known = house.target.releases(MODEL)
    lost = start(house, model=MODEL, recipe={"quantization": "q5_1", "dtype": "float16"})
    house.wait_for_work("checkpoint")
    for process in processes(house):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    house.run("up")

    house.wait_long(lambda: state(house, lost) == "CRASHED", "end of the lost run")
    limit = house.prefect("GET", "/deployments/name/rebuild/rebuild")["global_concurrency_limit"]
    assert limit["active_slots"] == 0

    def again() -> list[dict[str, Any]]:
        return house.prefect("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["again"]}}})

    house.wait_long(lambda: any(run["state_type"] == "COMPLETED" for run in again()), "rebuild that was started again")
    (run,) = again()
    assert run["parameters"] == house.prefect("GET", f"/flow_runs/{lost}")["parameters"]
    (release,) = set(house.target.releases(MODEL)) - set(known)
    assert house.node().models[MODEL].public == release
    # One engine, of a build of each of the two.
    engine = engine_of(house, release)
    assert sorted(build["state_type"] for build in house.children(engine.identity)) == ["COMPLETED", "CRASHED"]
    manifests = [entry.key for entry in house.store.bucket.list(engine.folder) if entry.key.endswith("/manifest.json")]
    assert len(manifests) == 1


def engine_of(house: House, release: int) -> ArtifactRef:
    repository = house.store.need(ArtifactRef.parse(house.target.intent(MODEL, release).repository))
    return ArtifactRef.parse(repository.manifest.inputs["engine"])


def tools(folder: Path) -> list[psutil.Process]:
    """Processes of the toolchain below `folder`."""
    return processes_with(str(folder / "image"))


def test_cancelling_a_rebuild_ends_its_build_its_tools_and_its_lease(house: House, tmp_path: Path) -> None:
    register()
    source = weights.make(tmp_path / "llama", seed="cancelled")
    limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
    runtime = {"tensorrt_llm": "0.12.0", "gpu": PRODUCT, "arch": "sm90", "gpus": 4}
    document = {
        "name": "cancelled",
        "source": {"uri": f"file://{source}"},
        "recipe": {"kind": "trt-engine", "runtime": runtime, "tp_size": 4, **limits},
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
    }
    path = house.catalogue / "cancelled.yaml"
    path.write_text(yaml.safe_dump(document))
    try:
        with build_worker(house, tmp_path, "0.12.0") as made:
            made.fail("hang-workers", "trtllm-build")
            run = start(house, model="cancelled", until="upload")
            house.wait_long(lambda: len(tools(tmp_path)) >= 5, "build with four workers", 120)
            (build,) = house.builds_of("cancelled")
            lease = Watch(house.store.bucket, build["parameters"]["engine"], 5)
            assert lease.holder() == build["id"] and build["work_pool_name"] == POOL

            cancelling = {"state": {"type": "CANCELLING"}}
            house.prefect("POST", f"/flow_runs/{run}/set_state", cancelling)
            house.wait_long(lambda: state(house, run) == "CANCELLED", "end of the rebuild", 60)
            house.wait_long(lambda: state(house, build["id"]) == "CANCELLED", "end of the build", 60)
            house.wait_long(lambda: not tools(tmp_path), "end of the tools", 10)
            house.wait_long(lambda: lease.holder() is None, "free lease", 10)
    finally:
        path.unlink()


# A process of its own: this one would keep Prefect's sockets. One run sends a heartbeat, which the
# server knows some seconds later.
LOOK = """
import asyncio, sys
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from flows.lost_runs import cancel_orphans, crash_the_dead

@flow
async def look():
    beating = f"prefect.flow-run.{sys.argv[1]}"
    emit_event("prefect.flow-run.heartbeat", resource={"prefect.resource.id": beating})
    wanted = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [beating]}}}
    async with get_client() as client:
        while not (await client.request("POST", "/events/filter", json=wanted)).json()["events"]:
            await asyncio.sleep(0.1)
        await crash_the_dead(client, ["rollback"], 20)
        await cancel_orphans(client, 0)

asyncio.run(look())
"""


def test_what_the_server_cannot_see_is_found(house: House) -> None:
    """Runs that fell silent unheard, and builds whose parent is gone: as records of the server, without processes."""

    def made(flow: str, **about: Any) -> str:
        flow_id = house.prefect("POST", "/flows/", {"name": flow})["id"]
        run = {"flow_id": flow_id, "name": flow, "state": {"type": "RUNNING"}, **about}
        return house.prefect("POST", "/flow_runs/", run)["id"]

    def child(parent: str, model: str) -> str:
        call = {"flow_run_id": parent, "task_key": "build_engine", "dynamic_key": "0", "state": {"type": "RUNNING"}}
        task = house.prefect("POST", "/task_runs/", call)["id"]
        return made("build_engine", parent_task_run_id=task, tags=[f"model:{model}"])

    silent, beating, foreign = made("rollback"), made("rollback"), made("somebody-elses")
    gone, parent = made("rollback"), made("rebuild", parameters={"model": "awaited"})
    orphan, awaited, attended = child(gone, "forgotten"), child(gone, "awaited"), child(parent, "other")
    time.sleep(20)
    ended = {"state": {"type": "FAILED"}, "force": True}
    house.prefect("POST", f"/flow_runs/{gone}/set_state", ended)
    environment = {**house.environment, **house.prefect_variables}
    subprocess.run([sys.executable, "-c", LOOK, beating], env=environment, check=True)
    assert [state(house, run) for run in (silent, beating, foreign)] == ["CRASHED", "RUNNING", "RUNNING"]
    assert [state(house, run) for run in (orphan, awaited, attended)] == ["CANCELLING", "RUNNING", "RUNNING"]
    for run in (beating, foreign, parent, orphan, awaited, attended):
        house.prefect("POST", f"/flow_runs/{run}/set_state", ended)
