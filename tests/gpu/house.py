"""The servers of the campaign: the embedded stack with its own catalogue, and a build worker on the GPU's pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.errors import TritonError
from infra.processes.sessions import start_session, terminate
from tests.flows.conftest import House
from tests.gpu.sizes import Network, Sizes

_COMMAND_SECONDS = 900


@dataclass(frozen=True)
class GpuHouse(House):
    """A stack whose commands may take as long as 6 GB take from a source to a GPU."""

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        try:
            output, errors = process.communicate(timeout=_COMMAND_SECONDS)
        except BaseException:
            process.kill()
            raise
        assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{output}\n{errors}"
        return output

    def gated(self, name: str) -> dict[str, Any]:
        """The report of a rebuild that its gates may refuse, or leave undecided."""
        return self.report(self.start("rebuild", name, "--json"), codes=(0, 3, 4))

    @staticmethod
    def report(process: subprocess.Popen[str], codes: Collection[int] = (0,)) -> dict[str, Any]:
        """That of a rebuild which was started with `--json`, once it has ended, with one of `codes`."""
        try:
            output, errors = process.communicate(timeout=_COMMAND_SECONDS)
        except BaseException:
            process.kill()
            raise
        assert process.returncode in codes, f"exit {process.returncode}\n{output}\n{errors}"
        return json.loads(output)

    def release(self, name: str, number: int) -> dict[str, Any]:
        """A release with its gates, as `enginehouse releases` lists it."""
        listed = json.loads(self.run("releases", name, "--json"))["releases"]
        return next(each for each in listed if each["release"] == number)

    def write_model(
        self,
        name: str,
        weights: Path,
        sizes: Sizes,
        network: Network,
        sections: Mapping[str, Any],
        **serving: Any,
    ) -> None:
        """The model's file for the kind `transformers`; `serving` replaces fields of that section.

        `sections` are others, such as `gates`, or replace one.
        """
        prompt = {
            "name": "answers-the-same",
            "text": "Name a colour.",
            "max_tokens": 4,
            "seed": 7,
            "temperature": 0,
            # Random weights may end at once: what counts is that both ways give the same.
            "expect": {"stream_equals": True},
        }
        document: dict[str, Any] = {
            "source": {"uri": f"file://{weights}"},
            "recipe": sizes.recipe,
            "serving": {"slots": network.slots, "context_tokens": network.context_tokens, **serving},
            "targets": ["local"],
            "prompts": [prompt],
        }
        self.write(name, **{**document, **sections})

    def write(self, name: str, **document: Any) -> None:
        (self.catalogue / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **document}))

    def answers(self, model: str) -> bool:
        """Whether the public name does, with whatever text: random weights may say nothing."""
        try:
            self.ask(model)
        except TritonError:
            return False
        return True

    def seconds_until_answer(self, model: str, seconds: float = 300) -> float:
        """How long it takes until the public name answers."""
        began = time.monotonic()
        self.wait(lambda: self.answers(model), seconds, f"answer of {model}")
        return time.monotonic() - began

    def use(self, model: str, **change: int | None) -> None:
        """Change what the target's nodes hold of a model, as its record `current.json` says it."""
        self.target.move(model, lambda current: current.model_copy(update=change))

    def loaded(self, model: str) -> dict[int, str]:
        """The state of each release of the model that the node has."""
        report = self.node().models.get(model)
        return {} if report is None else {number: release.state for number, release in report.releases.items()}


@contextmanager
def house(folder: Path, sizes: Sizes, toolchain: str) -> Generator[GpuHouse]:
    """A stack in `folder` that is up, and down after the block. `toolchain` is the build worker's setting, or empty."""
    catalogue = folder / "models"
    catalogue.mkdir(parents=True, exist_ok=True)
    foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
        "ENGINEHOUSE_HOME": str(folder / "home"),
        "ENGINEHOUSE_CATALOGUE": str(catalogue),
        "ENGINEHOUSE_RECONCILE_SCHEDULE": "never",
    }
    made = GpuHouse(folder / "home", catalogue, environment)
    try:
        made.run("up")
        os.environ.update(made.variables)
        if not sizes.on_gpu:  # the stack has a worker for what is built for the CPU
            yield made
            return
        with worker(made, folder, f"build-{sizes.architecture}", toolchain):
            yield made
    finally:
        made.run("down")


@contextmanager
def worker(made: GpuHouse, folder: Path, pool: str, toolchain: str = "") -> Generator[None]:
    """A worker of a pool of its own, which knows what the commands of `made` know."""
    _register(pool)
    started = start_session(
        [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
        log=folder / f"worker-{pool}.log",
        folder=folder,
        environment={
            **made.environment,
            **made.variables,
            **({"ENGINEHOUSE_TOOLCHAIN": toolchain} if toolchain else {}),
            "PREFECT_HOME": str(folder / "prefect" / pool),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        },
    )
    try:
        yield
    finally:
        terminate(started, 10)


def _register(pool: str) -> None:
    program = f"""
import asyncio
from deployments.prefect_server.desired import Desired, Pool, build_pool
from deployments.prefect_server.register import deploy
asyncio.run(deploy(Desired((Pool("{pool}"),), (build_pool("{pool}"),), ()), lambda change: None))
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "DO_NOT_TRACK": "1"}, check=True)
