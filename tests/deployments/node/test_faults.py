"""What a node outlives: faults of one model, a record, the disk, the store, Triton and the agent itself."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployments.node.served import Served, served
from tests.fleet import Fleet
from tests.waiting import PATIENCE

# What the agent leaves to its successor is ended by the fixture.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def node(fleet: Fleet, tmp_path: Path) -> Iterator[Served]:
    """A node that serves a@1 and b@1."""
    with served(fleet, tmp_path / "home") as made:
        for model in ("a", "b"):
            made.release(model)
        for model in ("a", "b"):
            made.wait_for(model, 1)
        yield made


@pytest.mark.parametrize(
    ("body", "code", "again"),
    [
        pytest.param(b"{", "cannot be read", False, id="damaged"),
        pytest.param(b'{"schema_version": 2, "public": 1}', "format-newer", True, id="newer-and-started-again"),
    ],
)
def test_a_record_that_cannot_be_read_costs_its_own_model_alone(
    node: Served, body: bytes, code: str, again: bool
) -> None:
    key = f"{node.target.prefix}a/current.json"
    good = node.target.bucket.get(key)
    assert good is not None
    pids = [triton.pid for triton in node.tritons()]
    node.target.bucket.put(key, body)
    node.target.bucket.put(f"{node.target.prefix}never-read/current.json", body)
    if again:
        node.kill()
        node.start()

    def errors() -> dict[str, str]:
        report = node.report()
        return {} if report is None else {name: model.error for name, model in report.models.items()}

    node.wait(lambda: code in errors().get("a", "") and code in errors().get("never-read", ""), "error of its own")
    assert errors()["b"] == ""
    assert node.release("b") == 2
    node.wait_for("b", 2)
    assert node.ask("a") == "a@1" and [triton.pid for triton in node.tritons()] == pids
    node.target.bucket.put(key, good.body)
    assert node.release("a") == 2
    node.wait_for("a", 2)
    node.wait(lambda: errors()["a"] == "", "report without an error")


def test_a_model_whose_process_died_or_stands_still_answers_again(node: Served) -> None:
    neighbour, triton = node.processes("b", 1), node.tritons()
    for how in (signal.SIGKILL, signal.SIGSTOP):
        (process,) = node.processes("a", 1)
        running = threading.Thread(target=node.ask, args=("a", "wait 3", 5.0))
        running.start()
        time.sleep(0.5)
        process.send_signal(how)
        node.wait(lambda: node.state("a", 1) != "ready", "report that it is not ready", 20)
        node.wait_for("a", 1, 30)
        node.wait(lambda: node.state("a", 1) == "ready", "report that it is ready")
        running.join()
    assert node.processes("b", 1) == neighbour and node.tritons() == triton


def test_a_model_that_always_dies_is_loaded_ever_more_seldom_and_given_up(node: Served) -> None:
    neighbour, triton = node.processes("b", 1), node.tritons()
    deadline, lives = time.monotonic() + 45 * PATIENCE, dict[int, float]()
    while not (found := node.health())[1]["models"]["a"]["given_up"]:
        assert time.monotonic() < deadline
        lives |= {each.pid: time.monotonic() for each in node.processes("a", 1) if each.pid not in lives}
        node.ask("a", "die")
        assert node.ask("b") == "b@1"
        time.sleep(0.2)
    *_, second, third = lives.values()
    assert len(lives) > 2 and third - second > 5, "its third load has waited"
    status, health = found
    assert status == 200 and health["ready"], "its neighbours answer"
    assert not health["models"]["a"]["ready"] and health["models"]["b"]["ready"]
    assert node.processes("b", 1) == neighbour and node.tritons()[0].pid == triton[0].pid
    node.wait_for("a", 1, 90)


def test_a_triton_that_died_or_hangs_is_started_again(node: Served) -> None:
    for how in (signal.SIGKILL, signal.SIGSTOP):
        (triton,) = node.tritons()
        triton.send_signal(how)
        node.wait(lambda: node.health()[0] == 503, "health that says so", 20)
        for model in ("a", "b"):
            node.wait_for(model, 1)
        node.wait(lambda: node.health()[0] == 200, "health")
        assert [each.pid for each in node.tritons()] != [triton.pid]


@pytest.mark.parametrize(("state", "agent"), [("away", False), ("hang", True)], ids=["triton", "agent-and-triton"])
def test_without_the_store_all_that_was_served_is_served_again(node: Served, state: str, agent: bool) -> None:
    node.door.state = "away" if state == "away" else "hang"
    if agent:
        node.kill()
    node.tritons()[0].kill()
    if agent:
        node.start()
    for model in ("a", "b"):
        node.wait_for(model, 1)
    node.wait(lambda: "store" in node.health()[1].get("error", ""), "health that names the store")
    node.wait(lambda: node.health()[0] == 200, "health")
    node.door.state = "open"
    node.release("a")
    node.wait_for("a", 2)


def test_a_model_that_ends_triton_does_not_take_the_others_along(node: Served) -> None:
    node.release("c", begin="os.kill(os.getppid(), signal.SIGKILL)")

    def given_up() -> bool:
        status, health = node.health()
        return status == 200 and health["models"].get("c", {}).get("given_up", False)

    node.wait(given_up, "model that is given up", 90)
    for model in ("a", "b"):
        node.wait_for(model, 1)
    triton = [each.pid for each in node.tritons()]
    time.sleep(15)
    assert [each.pid for each in node.tritons()] == triton
    assert node.release("c") == 2
    node.wait_for("c", 2)


def test_what_a_killed_agent_has_left_half_loaded_is_unloaded(node: Served) -> None:
    slow = node.release("a", begin="time.sleep(8)", public=False)
    node.wait(lambda: bool(node.processes("a", slow)), "process of the candidate")
    partial = next(iter((node.folder / "node/artifacts").iterdir())) / "attempt.0.partial"
    partial.mkdir()
    node.kill()
    node.target.move("a", lambda current: current.without_candidates(slow))
    node.start()

    def left() -> set[str]:
        loaded = {entry.name for entry in node.triton.index() if entry.state == "READY"}
        return {name for name in loaded | {each.name for each in node.models.iterdir()} if f"--r{slow}" in name}

    node.wait(lambda: not node.processes("a", slow) and not left(), "Triton without it")
    assert not partial.exists()
    assert node.ask("a") == "a@1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_costs_no_name(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(home)], check=True)
    try:
        with served(fleet, home) as node:
            for model in ("a", "a", "b"):
                node.wait_for(model, node.release(model))
            ballast = home / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
            node.target.move("a", lambda current: current.promoted(1))
            candidate = node.release("b", public=False)
            node.wait(lambda: "No space" in str(node.report()), "report of the full disk")
            assert node.ask("a") in ("a@1", "a@2") and node.ask("b") == "b@1"
            node.tritons()[0].kill()
            time.sleep(5)
            ballast.unlink()
            node.wait_for("a", 1)
            node.wait_for("b", 1)
            node.target.move("b", lambda current: current.without_candidates(candidate))
            assert node.process is not None and node.process.poll() is None
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_two_nodes_of_one_name_and_two_agents_of_one_node(node: Served, fleet: Fleet, tmp_path: Path) -> None:
    first = node.process
    node.start()
    assert node.process is not None and node.process.wait(30) == 2 and "[node-folder-taken]" in node.tail()
    node.process = first
    assert node.ask("a") == "a@1"
    report = node.report()
    with served(fleet, tmp_path / "other") as second:
        assert second.process is not None
        assert second.process.wait(60) == 2
        assert "[node-name-taken]" in second.tail() and "'one'" in second.tail()
        assert not second.tritons()
    now = node.report()
    assert report is not None and now is not None and now.http == report.http
    # The same node, started again, is not taken for another.
    node.kill()
    node.start()
    before = now.written
    node.wait(lambda: (found := node.report()) is not None and found.written > before, "report", 15)


def test_running_answers_end_before_the_node_does(node: Served) -> None:
    answers: list[str] = []

    def ask(model: str) -> None:
        answers.append(node.ask(model, "wait 7", 30.0))

    asking = [threading.Thread(target=ask, args=(model,)) for model in ("a", "b")]
    for each in asking:
        each.start()
    time.sleep(1)
    assert node.process is not None
    node.process.terminate()
    node.wait(lambda: node.health()[0] == 503, "health that says that it ends", 5)
    for each in asking:
        each.join()
    assert sorted(answers) == ["a@1", "b@1"]
    assert node.process.wait(30) == 0 and not node.tritons()
