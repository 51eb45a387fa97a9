"""Workspaces on one disk: no process finds its folders changed by another, and what the killed left goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.settings import CHECKOUT
from tasks.steps.claim import GRACE_SECONDS, remove_left
from tasks.steps.workspace import Workspace
from tasks.store.artifact import ArtifactRef

REF = ArtifactRef("engine", "e" * 64)
ROOT = "1" * 64

# Makes a file in scratch and one finished folder, leaves a half-finished one, and does what it is told then.
PROCESS = """
import sys
from pathlib import Path
from tasks.steps.workspace import Workspace
from tasks.store.artifact import ArtifactRef

workspace, ref = Workspace(Path(sys.argv[1])), ArtifactRef("engine", "e" * 64)
(workspace.scratch() / "file").touch()
found = workspace.folder(ref).is_dir()
folder = workspace.make(ref, lambda output: (output / sys.argv[2]).touch())
(folder.parent / "x.partial").mkdir(exist_ok=True)
print(folder, "again" if found else "made", flush=True)
sys.stdin.readline()
(workspace.scratch().parent / "scratch" / "file").touch()
print(*(path.name for path in folder.iterdir()), flush=True)
workspace.remove()
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start_one(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(tmp_path / "work" / ROOT), name]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_that_lost_its_lease_finds_its_own_folders(start: Start, tmp_path: Path) -> None:
    slow, successor = start("slow"), start("successor")
    places = {line(slow), line(successor)}
    assert len(places) == 2 and all(place.endswith("made") for place in places)
    assert f"{tmp_path}/work/{ROOT}/engine/{REF.identity} made" in places
    assert slow.communicate("\n", timeout=30)[0].strip() == "slow" and slow.returncode == 0
    assert successor.communicate("\n", timeout=30)[0].strip() == "successor" and successor.returncode == 0
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_killed_process_finished_is_gone_on_with(start: Start, tmp_path: Path) -> None:
    first = start("first")
    place = line(first).removesuffix(" made")
    first.kill()
    first.wait()
    assert Path(place).with_name("x.partial").is_dir()
    second = start("second")
    assert line(second) == f"{place} again"
    assert second.communicate("\n", timeout=30)[0].strip() == "first"
    assert list((tmp_path / "work").iterdir()) == []


def test_what_nobody_goes_on_with_is_removed_after_the_grace_time(start: Start, tmp_path: Path) -> None:
    work = tmp_path / "work"
    running = start("running")
    line(running)
    earlier = work / ("2" * 64)  # of an Enginehouse that had no locks
    killed = work / f"{'3' * 64}.{'a' * 32}"
    foreign = work / "models"
    for folder in (earlier, killed, foreign):
        (folder / "engine" / "x.partial").mkdir(parents=True)
    killed.with_name(f"{killed.name}.lock").touch()
    (read_only := earlier / "engine" / "x.partial").chmod(0o555)
    assert read_only.is_dir()
    before = set(work.iterdir())
    remove_left(work)
    assert set(work.iterdir()) == before
    past = time.time() - GRACE_SECONDS - 60
    for path in (*work.rglob("*"), *work.iterdir()):
        os.utime(path, (past, past))
    late = work / ("4" * 64)  # a step in it has just ended
    (late / "engine").mkdir(parents=True)
    os.utime(late, (past, past))
    # The next process that makes something on this machine does it.
    Workspace(work / ("5" * 64)).scratch()
    Workspace(work / ("5" * 64)).remove()
    assert set(work.iterdir()) == {work / ROOT, work / f"{ROOT}.lock", foreign, late}
    assert running.communicate("\n", timeout=30)[0].strip() == "running"
