"""The first hour, typed word for word into a fresh clone, with a catalogue outside of it.

One thing is not as the page has it: `make run` finds an environment, the one that runs this test, and makes none. What
a block needs beyond this machine, its first line says, and such a block is left out by that line alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from infra.settings import CHECKOUT
from tests.deployments.docs.test_commands import FENCE, MARKS, commands
from tests.waiting import PATIENCE

PAGE = CHECKOUT / "docs" / "first-hour.md"
FLEET = "~/fleet"


def typed() -> Iterator[str]:
    """The blocks that this machine can do, in the order of the page, as lines of a shell. A model's file is written."""
    for language, block in FENCE.findall(PAGE.read_text()):
        if language == "yaml":
            name = yaml.safe_load(block)["name"]
            yield f"cat > {FLEET}/models/{name}.yaml <<'END'\n{block}END\n"
        elif language == "sh" and not block.startswith(MARKS):
            yield block


def test_all_that_needs_no_other_machine_is_typed() -> None:
    words = [command for block in typed() if not block.startswith("cat ") for command in commands(block)]
    assert words[0] == ["make", "run"] and ["enginehouse", "init", FLEET] in words
    asked = {command[1] for command in words if command[0] == "enginehouse"}
    assert {"up", "rebuild", "ask", "why", "rollback", "status", "doctor", "plan", "down"} <= asked
    assert {command[0] for command in words} <= {"make", ".", "cd", "enginehouse"}


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """What is committed, cloned, with the links of an environment in place of one that `make` would fetch 1 GB for."""
    folder = tmp_path / "enginehouse"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(folder)], check=True)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.suffix != ".installed":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / "run.installed").touch()
    (tmp_path / "home").mkdir()
    yield folder
    for place in (folder, tmp_path / "home" / "fleet"):
        if place.is_dir():
            arguments = [sys.executable, "-m", "deployments.cli.main", "down"]
            subprocess.run(arguments, cwd=place, env=surroundings(folder), check=True, timeout=120)


def surroundings(clone: Path) -> dict[str, str]:
    """A user's environment with a home of its own, in which the clone's code is what is imported."""
    foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # Where pip has its index and its cache.
    theirs = {"XDG_CONFIG_HOME": str(Path.home() / ".config"), "XDG_CACHE_HOME": str(Path.home() / ".cache")}
    return {**theirs, **kept, "HOME": str(clone.parent / "home"), "PYTHONPATH": str(clone), "PWD": str(clone)}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(2400)
def test_the_first_hour(clone: Path) -> None:
    blocks = list(typed())
    script = "".join(f"echo '--- block {number}'\n{block}" for number, block in enumerate(blocks))
    done = subprocess.run(
        ["bash", "--norc", "-e", "-c", script],
        cwd=clone,
        env=surroundings(clone),
        capture_output=True,
        text=True,
        timeout=1200 * PATIENCE,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    run, again, own, plan = (
        part for number, part in enumerate(done.stdout.split("--- block ")[1:]) if blocks[number][:4] != "cat "
    )
    assert "smollm2-135m release 1: promoted" in run and "curl -s" in run and "target local, 1 node" in run
    assert "unchanged" in again and "release 2: promoted" in again and "quantization q8_0 → q4_0" in again
    assert "smollm2-135m answers with release 1, instead of 2" in again
    assert "release 1: promoted" in own and " 0 wrong" in own
    assert "my-llama  kind transformers, built on pool build-sm90" in plan
    fleet = clone.parent / "home" / "fleet"
    assert (fleet / ".enginehouse" / "ports.json").is_file() and (fleet / "models" / "my-llama.yaml").is_file()
