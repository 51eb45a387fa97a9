"""The main job, end to end, on a real stack: what is rebuilt, what is not, and what serves meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.names import FLEET_KEY
from infra.errors import TritonError
from infra.triton.client import TritonClient
from infra.triton.processes import memory_of_models
from tasks.steps.promote import promote
from tasks.store.artifact import ArtifactRef
from tasks.targets.current import Current
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"
BUILT = ("fetch", "convert", "build", "upload", "assemble")


def states(report: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in report["steps"]}


def artifact(report: dict[str, Any], step: str) -> ArtifactRef:
    return ArtifactRef.parse(next(found["artifact"] for found in report["steps"] if found["name"] == step))


def task_states(house: House, report: dict[str, Any]) -> dict[str, str]:
    """The states of the run's tasks in Prefect's API."""
    runs = house.prefect("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [report["flow_run"]]}}})
    return {run["name"].split()[0]: run["state_name"] for run in runs}


def test_again_nothing_is_done(house: House, live: dict[str, Any]) -> None:
    def page() -> str:
        return house.prefect("GET", f"/artifacts/{FLEET_KEY}/latest")["id"]

    shown = page()
    again = house.rebuild()
    assert again["state"] == "unchanged" and again["release"] == live["release"] and page() == shown
    assert {states(again)[step] for step in BUILT} == {"Cached"}
    assert "validate" not in states(again)
    house.wait(lambda: len(task_states(house, again)) >= 7, 10, "task runs in the API")
    assert {task_states(house, again)[step] for step in BUILT} == {"Cached"}
    assert again["url"].endswith(again["flow_run"])
    assert house.ask()


def test_a_copied_model_rebuilds_nothing_but_its_release(house: House, live: dict[str, Any]) -> None:
    house.add_model("copied")
    copied = house.rebuild("copied")
    assert copied["state"] == "promoted" and {states(copied)[step] for step in BUILT} == {"Cached"}
    for step in BUILT:
        if step != "build":  # which leaves nothing in the store
            assert artifact(copied, step) == artifact(live, step)
    assert house.ask("copied") == house.ask()
    assert house.rebuild("copied")["state"] == "unchanged"


def in_processes(models: Path) -> set[str]:
    """The models of a repository that have processes."""
    return {name.partition("--")[0] for name in memory_of_models(models)}


def test_a_model_gets_another_name_and_leaves(house: House, live: dict[str, Any]) -> None:
    serving = {"context_tokens": 1024}  # so that its repository is one of its own on the node's disk
    house.add_model("leaver", lambda document: document["serving"].update(serving))
    made = house.rebuild("leaver")
    answer, repository = house.ask("leaver"), artifact(made, "assemble")
    folder, copy = house.home / "node" / "models", house.home / "node" / "artifacts" / repository.identity
    assert copy.is_dir() and "leaver" in in_processes(folder)

    house.run("rename", "leaver", "left", "--yes")
    assert house.ask("left") == answer
    again = house.rebuild("left")
    assert again["state"] == "unchanged" and artifact(again, "assemble") == repository
    assert "release local/leaver@1" in house.run("lineage", "left@1")

    house.run("retire", "left", "--reason", "the test is over", "--yes")
    for name in ("leaver", "left"):
        with pytest.raises(TritonError) as caught:
            house.ask(name)
        assert caught.value.code == "triton-unknown-model"
        assert not [path for path in folder.iterdir() if path.name.partition("--")[0] == name]
        assert not house.node().models[name].releases
    house.wait(lambda: not copy.exists(), 60, "the files gone from the node's disk")
    house.wait(lambda: in_processes(folder).isdisjoint(("leaver", "left")), 60, "its processes gone")
    assert "the test is over" in house.run("history", "left")
    assert "release local/leaver@1" in house.run("lineage", "left@1")
    assert house.ask()
    assert house.rebuild("left")["state"] == "promoted" and house.ask("left") == answer  # its file is still there


@pytest.mark.long
def test_another_recipe_and_back(house: House, live: dict[str, Any]) -> None:
    before = house.ask()
    report = house.rebuild(MODEL, "--recipe", "quantization=q4_0")
    assert states(report)["fetch"] == states(report)["convert"] == "Cached"
    assert report["state"] == "promoted" and report["release"] > live["release"]
    other = house.ask()
    assert json.loads(house.run("rollback", MODEL, "--json"))["release"] == live["release"]
    assert house.ask() == before != other
    # The number of the release is spent; the same recipe later makes a release of its own, from the same artifacts.
    later = house.rebuild(MODEL, "--recipe", "quantization=q4_0")
    assert {states(later)[step] for step in BUILT} == {"Cached"} and later["release"] > report["release"]


@pytest.mark.long
def test_artifacts_in_the_ui_hang_on_their_tasks(house: House, live: dict[str, Any]) -> None:
    report = house.rebuild(MODEL, "--recipe", "quantization=q4_1")
    keys: dict[str, str] = {}
    artifacts = house.prefect("POST", "/artifacts/filter", {})
    for found in artifacts:
        if found["task_run_id"] is not None and found["key"] is not None:
            keys[found["key"]] = found["type"]
    assert keys[f"engine-{MODEL}"] == "markdown"
    assert keys[f"upload-{MODEL}"] == "progress"
    assert keys[f"prompts-{MODEL}-local"] == "markdown"
    assert keys[f"release-{MODEL}-local"] == "markdown"
    (told,) = [found for found in artifacts if found["key"] == f"report-{MODEL}-local"][:1]
    assert told["type"] == "markdown" and told["data"].startswith("# smollm2")
    page = house.store.bucket.get(f"targets/local/{MODEL}/{report['release']}/report.html")
    assert page is not None and b"q4&#95;1" not in page.body and b"q4_1" in page.body
    lineage = [found for found in artifacts if found["key"] == f"lineage-{MODEL}"]
    assert any(artifact(report, "upload").identity[:12] in found["data"] for found in lineage)
    assert all("```mermaid" in found["data"] for found in lineage)


@pytest.mark.long
def test_a_lost_engine_file_is_built_again(house: House, live: dict[str, Any]) -> None:
    engine = house.store.need(artifact(live, "upload"))
    house.store.bucket.delete(f"{engine.ref.folder}{engine.manifest.attempt}/model.gguf")
    report = house.rebuild()
    assert states(report)["convert"] == "Cached"
    assert states(report)["build"] == states(report)["upload"] == "Completed"
    mended = house.store.need(engine.ref).manifest
    assert mended.attempt != engine.manifest.attempt and mended.digest == engine.manifest.digest
    assert report["state"] == "unchanged"


def test_a_target_without_a_node_builds_nothing(house: House, live: dict[str, Any]) -> None:
    report = house.rebuild(MODEL, "--target", "nowhere", "--recipe", "quantization=q5_0", code=2)
    assert report["error"]["code"] == "target-without-node" and report["steps"] == []
    assert "targets with nodes: local" in report["error"]["hint"]


def test_a_flipped_byte_is_found_without_reading_and_built_again(house: House, live: dict[str, Any]) -> None:
    engine = house.store.need(artifact(live, "upload"))
    key = f"{engine.ref.folder}{engine.manifest.attempt}/limits.json"
    data = bytearray(house.store.read(engine, "limits.json"))
    data[-3] ^= 1
    house.store.bucket.put(key, bytes(data))
    assert "altered" in house.store.look_up(engine.ref).problem
    assert states(house.rebuild())["build"] == "Completed"
    assert house.store.find(engine.ref) is not None
    kept = [entry.key for entry in house.store.bucket.list(f"{engine.ref.folder}damaged/")]
    records = [house.store.bucket.get(entry) for entry in kept]
    attempts = [json.loads(record.body)["attempt"] for record in records if record is not None]
    assert engine.manifest.attempt in attempts


@pytest.mark.long
def test_refresh_makes_a_step_and_all_after_it_again(house: House, live: dict[str, Any]) -> None:
    before = house.store.need(artifact(live, "upload")).manifest
    report = house.rebuild(MODEL, "--refresh", "build")
    assert states(report)["convert"] == "Cached"
    assert states(report)["build"] == states(report)["upload"] == states(report)["assemble"] == "Completed"
    after = house.store.need(artifact(report, "upload")).manifest
    told = house.run("logs", MODEL, "--step", "build", "--follow", "--json").splitlines()
    assert f"build {MODEL} begins" in [json.loads(line)["message"] for line in told]  # from the worker's own log
    # The quantizer is deterministic: equal bytes, so nothing is rolled out.
    assert after.attempt != before.attempt and after.digest == before.digest
    assert report["state"] == "unchanged"


def test_a_prompt_that_cannot_pass(house: House, live: dict[str, Any], refused: dict[str, Any]) -> None:
    assert refused["state"] == "refused" and refused["error"]["code"] == "gate-refused"
    assert states(refused)["validate"] == "Refused"
    listed = json.loads(house.run("releases", MODEL, "--json"))
    row = next(row for row in listed["releases"] if row["release"] == refused["release"])
    assert listed["public"] == live["release"] and row["state"] == "refused" and not row["loaded"]
    assert "no model ever says this" in row["result"]["reason"]
    assert any(prompt["answer"] for prompt in row["result"]["prompts"])
    assert "no model ever says this" in house.run("releases", MODEL)
    house.wait(lambda: refused["release"] not in house.node().models[MODEL].releases, 20, "unloading")


def test_wrong_use_is_refused_early(house: House) -> None:
    assert house.rebuild("nothing", code=2)["error"]["code"] == "model-missing"
    assert house.rebuild(MODEL, "--recipe", "quantization=q99", code=2)["error"]["code"] == "spec-invalid"
    house.run("rebuild", MODEL, "--recipe", "quantization", code=2)
    house.run("rollback", MODEL, "--to", "4711", code=2)
    house.run("releases", "nothing", code=2)


@pytest.mark.long
def test_promotions_under_load(house: House, live: dict[str, Any]) -> None:
    """16 clients stream while the public name moves 10 times: no failed or torn answer, nothing started twice."""
    first = live["release"]
    second = house.rebuild(MODEL, "--recipe", "quantization=q4_0")["release"]

    def started() -> tuple[int, ...]:
        node = house.node()
        return node.triton_pid, *(node.models[MODEL].releases[number].starts for number in (first, second))

    before = started()
    address = house.variables["ENGINEHOUSE_TRITON_HTTP"]
    stop = threading.Event()
    answers: list[int] = []
    failures: list[str] = []

    def stream() -> None:
        client = TritonClient(address, timeout_s=110)
        while not stop.is_set():
            try:
                request = {"text_input": "Count.", "max_tokens": 8, "temperature": 0.0, "stream": True}
                tokens = 0
                for piece in client.generate_stream(MODEL, request):
                    tokens += bool(piece.text)
                answers.append(tokens)
            except Exception as error:
                failures.append(repr(error))

    clients = [threading.Thread(target=stream) for _ in range(16)]
    for client in clients:
        client.start()
    try:
        for turn in range(10):
            done = len(answers)
            promote(house.target, MODEL, (first, second)[turn % 2])
            house.wait(lambda done=done: len(answers) > done or bool(failures), 60, "answers")
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert not failures, failures[:3]
    assert len(answers) >= 26 and all(1 <= tokens <= 8 for tokens in answers)
    assert started() == before


def test_a_release_takes_the_place_of_the_live_one(house: House, live: dict[str, Any]) -> None:
    """As where memory holds one release: never two at a time, and a candidate that goes brings the live one back."""
    first = live["release"]
    second = house.rebuild(MODEL, "--recipe", "quantization=q4_0")["release"]

    most = 3  # an older release may still be on its way out

    def holds(release: int, public: int | None) -> bool:
        known = house.node().models[MODEL]
        assert len(known.releases) <= most
        return set(known.releases) == {release} and known.releases[release].state == "ready" and known.public == public

    def only(current: Current, public: int, *candidates: int) -> Current:
        return current.model_copy(update={"public": public, "candidates": candidates, "alone": True})

    try:
        house.target.move(MODEL, lambda current: only(current, second))
        house.wait(lambda: holds(second, second), 60, "the public release alone")
        most = 1
        house.target.move(MODEL, lambda current: only(current, second, first))
        house.wait(lambda: holds(first, None), 60, "the candidate alone")
        with pytest.raises(TritonError):
            house.ask()
        house.target.move(MODEL, lambda current: only(current, second))
        house.wait(lambda: holds(second, second), 60, "the public release again")
        assert house.ask()
        promote(house.target, MODEL, first)
        assert holds(first, first) and house.ask()
    finally:
        house.target.move(MODEL, lambda current: current.model_copy(update={"candidates": (), "alone": False}))


@pytest.mark.long
def test_killed_triton_comes_back(house: House, live: dict[str, Any]) -> None:
    before = house.ask()

    pid = house.node().triton_pid
    os.kill(pid, signal.SIGKILL)
    house.wait(lambda: house.node().triton_pid not in (0, pid), 30, "new Triton")
    house.wait(lambda: house.node().models.get(MODEL) is not None, 30, "report")
    house.wait(lambda: house.node().models[MODEL].public == live["release"], 60, "public release")
    assert house.ask() == before


@pytest.mark.long
def test_two_at_once_are_built_once(house: House, live: dict[str, Any]) -> None:
    both = [house.start("rebuild", MODEL, "--recipe", "quantization=q5_0", "--json") for _ in range(2)]
    outputs = [process.communicate(timeout=240 * PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    reports = [json.loads(output) for output, _ in outputs]
    engines = {str(artifact(report, "upload")) for report in reports}
    assert len(engines) == 1
    assert len(house.children(artifact(reports[0], "upload").identity)) == 1
    assert reports[0]["release"] == reports[1]["release"]


@pytest.mark.long
def test_two_models_with_one_slot_on_each_pool(house: House, live: dict[str, Any]) -> None:
    for pool in ("default", "build-cpu"):
        house.prefect("PATCH", f"/work_pools/{pool}", {"concurrency_limit": 1})
    try:
        for name in ("twin-one", "twin-two"):
            house.add_model(name)
        deployment = house.prefect("GET", "/deployments/name/rebuild/rebuild")["id"]
        runs: list[str] = []
        for name in ("twin-one", "twin-two"):
            body = {"parameters": {"model": name, "recipe": {"quantization": "q5_1"}}}
            runs.append(house.prefect("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])
        until = time.monotonic() + 240 * PATIENCE
        while True:
            types = [house.prefect("GET", f"/flow_runs/{run}")["state"]["type"] for run in runs]
            if all(kind not in ("SCHEDULED", "PENDING", "RUNNING") for kind in types):
                break
            assert time.monotonic() < until, types
            time.sleep(0.5)
        assert types == ["COMPLETED", "COMPLETED"]
    finally:
        for pool in ("default", "build-cpu"):
            house.prefect("PATCH", f"/work_pools/{pool}", {"concurrency_limit": None})
    assert house.ask("twin-one") == house.ask("twin-two")
