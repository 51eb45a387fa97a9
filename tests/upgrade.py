"""Run by hand: whether this code takes over a home that an earlier commit has made, weights and servers included.

    python -m tests.upgrade [--commit 060e017] [--keep DIR]

The commit is checked out beside, does `make run`, then a release of q4_0, a rollback and a pin, and its answers are
noted. Then this code starts the same home. It must answer as before, find everything Cached up to the engine, and move
the public name to both releases. Other serving code than that commit's is in a new release, with the same answer. One
line is printed for each check; the first difference ends the script with exit code 1. A run takes a few minutes.

With `--keep` everything stays in DIR: the checkout, its answers and the home as that commit left it. A second run with
the same DIR begins there. `tests/test_old_home.py` reads the records of such a home in CI.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from infra.files import remove_tree
from infra.processes.background import members
from infra.settings import CHECKOUT

COMMIT = "060e017"
MODEL = "smollm2-135m"
LIVE, OTHER = f"{MODEL}@1", f"{MODEL}@2"
COMMAND_SECONDS, MAKE_SECONDS, LOAD_SECONDS = 300, 1200, 120

Document = dict[str, JsonValue]


class Differs(Exception):
    """What this code does is not what the earlier one did."""


@dataclass(frozen=True)
class Enginehouse:
    """The command line of one checkout, on one home."""

    command: tuple[str, ...]
    checkout: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "ENGINEHOUSE_HOME": str(self.home)}

    def run(self, *arguments: str) -> str:
        """Standard output of a command, which must end well. Raises Differs."""
        return _output([*self.command, *arguments], self.checkout, self.environment, COMMAND_SECONDS)

    def json(self, *arguments: str) -> JsonValue:
        return json.loads(self.run(*arguments))

    @property
    def of_stack(self) -> tuple[str, ...]:
        """The option with which `status` tells of the stack: it did nothing else before it could tell of the fleet."""
        return ("--stack",) if (self.checkout / "deployments/cli/status_commands.py").exists() else ()

    def ask(self) -> str:
        """An answer of the public name. After `up` its release is loaded beside, so the first tries may fail."""
        until = time.monotonic() + LOAD_SECONDS
        while True:
            try:
                return self.run("ask", MODEL, "Name a colour.", "--max-tokens", "16", "--seed", "1")
            except Differs:
                if time.monotonic() > until:
                    raise
                time.sleep(1)

    def rebuild(self, *arguments: str) -> JsonValue:
        """The report of a rebuild, without its times and the run's own id."""
        report = cast(Document, self.json("rebuild", MODEL, *arguments, "--json"))
        steps = cast("list[Document]", report["steps"])
        return {
            **_without(report, "flow_run", "url"),
            "steps": [_without(step, "seconds") for step in steps],
        }


def _output(command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=True, timeout=seconds, check=False
    )
    if done.returncode != 0:
        raise Differs(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _without(document: Document, *names: str) -> Document:
    return {name: value for name, value in document.items() if name not in names}


def without_new_fields(written: JsonValue, was: JsonValue) -> JsonValue:
    """`written` without the fields that `was` lacks, at every depth."""
    if isinstance(written, dict) and isinstance(was, dict):
        return {name: without_new_fields(written[name], was[name]) for name in was if name in written}
    if isinstance(written, list) and isinstance(was, list) and len(written) == len(was):
        return [without_new_fields(*pair) for pair in zip(written, was, strict=True)]
    return written


def answers(house: Enginehouse) -> Iterator[tuple[str, JsonValue]]:
    """What the commands answer of the home, by command; without the nodes' reports, process ids and times."""
    services = cast("list[Document]", house.json("status", *house.of_stack, "--json"))
    # A gateway is beside the services of before.
    yield "status", [_without(each, "pid", "since") for each in services if each["name"] != "gateway"]
    yield (
        f"rebuild {MODEL} --recipe quantization=q4_0",
        house.rebuild("--recipe", "quantization=q4_0", "--until", "upload"),
    )
    yield f"releases {MODEL}", _without(cast(Document, house.json("releases", MODEL, "--json")), "nodes")
    yield f"why {OTHER}", house.json("why", OTHER, "--json")
    yield "ask", house.ask()
    node = str(house.home / "node")
    for reference in (MODEL, LIVE, OTHER):
        yield f"lineage {reference}", house.json("lineage", reference, "--format", "json")
    for reference in (LIVE, OTHER):
        yield f"verify {reference}", house.json("verify", reference, "--json")
        yield f"verify {reference} --node", house.json("verify", reference, "--node", node, "--json")


def make_home(old: Enginehouse, commit: str) -> dict[str, JsonValue]:
    """Check the commit out, let it make a home, and return what it answers of it. Its stack is down afterwards."""
    git = ("git", "clone", "--quiet", "--no-checkout", str(CHECKOUT), str(old.checkout))
    _output(git, CHECKOUT, os.environ, MAKE_SECONDS)
    _output(("git", "checkout", "--quiet", commit), old.checkout, os.environ, COMMAND_SECONDS)
    try:
        make = ("make", "run", f"PYTHON={Path(sys.executable).resolve()}")
        _output(make, old.checkout, old.environment, MAKE_SECONDS)
        _say(f"{commit} has done `make run`")
        old.rebuild("--recipe", "quantization=q4_0")
        old.run("rollback", MODEL)
        old.run("pin", OTHER, "--reason", "upgrade")
        _say(f"{commit} has released q4_0, rolled it back and pinned it")
        return dict(answers(old))
    finally:
        _take_down(old)


def check(new: Enginehouse, before: Mapping[str, JsonValue]) -> None:
    """Start the home with this code and compare. Raises Differs. The stack is down afterwards."""
    try:
        new.run("up")
        _say("the stack is up")
        for name, answer in answers(new):
            _require_same(name, before[name], without_new_fields(answer, before[name]))
            _say(f"{name}: as before")
        rebuilt = cast(Document, new.rebuild())
        _require_nothing_built(rebuilt)
        _say(f"every step up to the engine was found Cached, and the release was {rebuilt['state']}")
        live = int(cast("dict[str, int]", rebuilt["targets"])["local"])
        _require_same("ask", before["ask"], new.ask())
        for came_from, release, reference in ((live, 2, OTHER), (2, 1, LIVE)):
            report = cast(Document, new.json("rollback", MODEL, "--to", str(release), "--json"))
            _require_same("rollback", {"model": MODEL, "release": release, "from": came_from}, report)
            answer = new.ask()
            if not answer.strip() or (reference == LIVE) != (answer == before["ask"]):
                raise Differs(f"{reference} answers {answer!r}, and {LIVE} answered {before['ask']!r}")
            _say(f"rollback: {reference} is public, and answers")
        new.run("unpin", OTHER)
        _say(f"unpin {OTHER}: the pin was found")
    finally:
        _take_down(new)


def _require_nothing_built(report: Document) -> None:
    steps = cast("list[Document]", report["steps"])
    found = {str(step["name"]): step["state"] for step in steps}
    built = ("fetch", "convert", "build", "upload")
    _require_same("the states of a rebuild", dict.fromkeys(built, "Cached"), {name: found[name] for name in built})


def _require_same(name: str, before: JsonValue, now: JsonValue) -> None:
    if before != now:
        old, new = (json.dumps(document, indent=1, sort_keys=True).splitlines() for document in (before, now))
        raise Differs("\n".join([name, *unified_diff(old, new, "before", "now", lineterm="")]))


def _take_down(house: Enginehouse) -> None:
    if house.home.exists() and Path(house.command[0]).exists():
        house.run("down")
    if left := members(house.home):
        raise Differs(f"these processes outlive `down`: {left}")


def _say(line: str) -> None:
    print(f"ok  {line}", flush=True)


def run(folder: Path, commit: str) -> None:
    """The whole script, in `folder`. Raises Differs."""
    code, home, made, noted = (folder / name for name in ("code", "home", "home-as-made", "answers.json"))
    old = Enginehouse((str(code / ".venv/bin/enginehouse"),), code, home)
    new = Enginehouse((sys.executable, "-m", "deployments.cli.main"), CHECKOUT, home)
    if noted.exists():
        remove_tree(home)
        shutil.copytree(made, home, symlinks=True)
        _say(f"the home that {commit} made earlier is in its place again")
    else:
        document = make_home(old, commit)
        shutil.copytree(home, made, symlinks=True)
        noted.write_text(json.dumps(document, indent=1))
    check(new, json.loads(noted.read_text()))


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default=COMMIT, help=f"by default {COMMIT}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR and leave everything there")
    options = parser.parse_args()
    try:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            run(options.keep.absolute(), options.commit)
        else:
            with tempfile.TemporaryDirectory(prefix="enginehouse-upgrade-") as name:
                run(Path(name), options.commit)
    except Differs as error:
        print(f"DIFFERS  {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
