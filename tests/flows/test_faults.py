"""Everything that can be killed is killed, at the worst moment. Nothing is lost, nothing torn is used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tasks.store.artifact import ArtifactRef
from tasks.targets.target import Target
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark, LONG = pytest.mark.slow, pytest.mark.long

MODEL = "smollm2-135m"


def engine(report: dict[str, Any]) -> ArtifactRef:
    return ArtifactRef.parse(next(step["artifact"] for step in report["steps"] if step["name"] == "upload"))


def recipe(quantization: str, dtype: str) -> tuple[str, ...]:
    # A recipe of its own for every test: an engine that nobody has built.
    return ("--recipe", f"quantization={quantization}", "--recipe", f"dtype={dtype}")


def flow_run_process(house: House) -> psutil.Process:
    """The process of the child flow, below the worker of its pool."""
    found = [child for child in house.process("worker-build-cpu").children() if "prefect" in " ".join(child.cmdline())]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("kind", ["checkpoint", pytest.param("engine", marks=LONG)])
def test_the_flow_is_killed_while_it_builds(house: House, live: dict[str, Any], kind: str) -> None:
    chosen = recipe("q5_1", "bfloat16") if kind == "checkpoint" else recipe("q4_1", "bfloat16")
    first = house.start("rebuild", MODEL, *chosen, "--json")
    house.wait_for_work("engine" if kind == "engine" else "checkpoint")
    first.kill()
    first.communicate()
    report = house.rebuild(MODEL, *chosen)
    assert report["state"] == "promoted" and house.intact(report)
    # The child went on without its parent, and the second run waited for it or found what it had made.
    assert len(house.children(engine(report).identity)) == 1


@LONG
def test_the_build_is_killed(house: House, live: dict[str, Any]) -> None:
    chosen = recipe("q5_0", "bfloat16")
    rebuild = house.start("rebuild", MODEL, *chosen, "--json")
    house.wait_for_work("engine")
    flow_run_process(house).kill()
    output, errors = rebuild.communicate(timeout=240 * PATIENCE)
    assert rebuild.returncode == 0, errors
    report = json.loads(output)
    assert report["state"] == "promoted" and house.intact(report)
    assert len(house.children(engine(report).identity)) == 2


@LONG
def test_the_worker_is_killed(house: House, live: dict[str, Any]) -> None:
    chosen = recipe("q4_0", "bfloat16")
    rebuild = house.start("rebuild", MODEL, *chosen, "--json")
    house.wait_for_work("engine")
    house.process("worker-build-cpu").kill()
    house.run("up")
    output, errors = rebuild.communicate(timeout=240 * PATIENCE)
    assert rebuild.returncode == 0, errors
    report = json.loads(output)
    assert report["release"] == house.node().models[MODEL].public and house.intact(report)


@LONG
def test_the_worker_and_the_build_are_killed(house: House, live: dict[str, Any]) -> None:
    """As when the machine of the worker dies: Prefect is not notified, and the run stays Running for ever."""
    chosen = recipe("f16", "bfloat16")
    rebuild = house.start("rebuild", MODEL, *chosen, "--json")
    house.wait_for_work("engine")
    run = flow_run_process(house)
    house.process("worker-build-cpu").kill()
    run.kill()
    house.run("up")
    output, errors = rebuild.communicate(timeout=240 * PATIENCE)
    assert rebuild.returncode == 0, errors
    report = json.loads(output)
    assert house.intact(report)
    states = sorted(child["state"]["type"] for child in house.children(engine(report).identity))
    assert states == ["COMPLETED", "CRASHED"]


def test_the_store_is_killed_while_the_engine_is_uploaded(house: House, live: dict[str, Any]) -> None:
    chosen = recipe("bf16", "bfloat16")
    rebuild = house.start("rebuild", MODEL, *chosen, "--json")
    # The engine lies finished in the workspace, and nothing of it is committed.
    house.wait(lambda: any(house.home.glob("work/*/engine/*/limits.json")), 120, "finished engine")
    house.process("s3").kill()
    house.run("up")
    output, errors = rebuild.communicate(timeout=240 * PATIENCE)
    assert rebuild.returncode == 0, errors
    report = json.loads(output)
    assert report["state"] == "promoted" and house.intact(report)
    assert len(house.children(engine(report).identity)) == 1


def test_everything_is_killed(house: House, live: dict[str, Any]) -> None:
    before = house.ask()
    known = house.target.releases(MODEL)
    for service in ("node", "worker-default", "worker-build-cpu", "prefect", "s3"):
        house.process(service).kill()
    house.run("up")
    house.wait(lambda: bool(house.target.nodes()), 30, "report of the node")
    house.wait(lambda: house.node().models[MODEL].public == live["release"], 60, "public release")
    assert house.ask() == before
    assert house.target.releases(MODEL) == known
    assert house.rebuild()["state"] == "unchanged"


def test_the_node_is_killed_and_triton_serves_on(house: House, live: dict[str, Any]) -> None:
    before = house.node()
    house.process("node").kill()
    assert house.ask()
    house.run("up")
    number = live["release"]

    def found_again() -> bool:
        now = house.node()
        release = now.models[MODEL].releases.get(number) if MODEL in now.models else None
        return now.written > before.written and release is not None and release.state == "ready"

    house.wait(found_again, 30, "report")
    after = house.node()
    assert after.triton_pid == before.triton_pid
    # Found again, not loaded again.
    assert after.models[MODEL].releases[number].starts == 0


@LONG
@pytest.mark.parametrize("step", ["roll_out", "validate", "promote"])
def test_the_flow_is_killed_while_it_releases(house: House, live: dict[str, Any], step: str) -> None:
    """A crash after any arrow rolls forward: the number that was reserved is used by the next run."""
    house.run("rollback", MODEL, "--to", str(live["release"]))
    chosen = recipe({"roll_out": "q4_0", "validate": "q4_1", "promote": "q5_0"}[step], "float16")
    target: Target = house.target
    spent = target.releases(MODEL)[-1]
    rebuild = house.start("rebuild", MODEL, *chosen, "--json")
    reached = {
        "roll_out": lambda: target.releases(MODEL)[-1] > spent,
        "validate": lambda: (
            house.node().models[MODEL].releases.get(spent + 1) is not None
            and house.node().models[MODEL].releases[spent + 1].state == "ready"
        ),
        "promote": lambda: target.result(MODEL, spent + 1) is not None,
    }[step]
    house.wait(reached, 120, step)
    rebuild.kill()
    rebuild.communicate()
    report = house.rebuild(MODEL, *chosen)
    assert report["release"] == spent + 1 == house.node().models[MODEL].public
    assert target.current(MODEL)[0].candidates == ()
