"""A whole embedded stack for the flow tests, used as a person would: through the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infra.s3.bucket import Bucket
from infra.triton.client import TritonClient
from tasks.steps.promote import promote
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tests import prefect_api
from tests.waiting import PATIENCE, wait

MODELS = Path(__file__).parents[2] / "deployments" / "models"
RECORDER = Path(__file__).parents[1] / "recorder"
MODEL = "smollm2-135m"


@dataclass(frozen=True)
class House:
    """A stack in a folder of its own, with a catalogue that tests may add to."""

    home: Path
    catalogue: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "deployments.cli.main", *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Standard output of a command that must end with `code`."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=240 * PATIENCE)
        assert process.returncode == code, f"{arguments}: exit {process.returncode}\n{output}\n{errors}"
        return output

    def rebuild(self, model: str = MODEL, *arguments: str, code: int = 0) -> dict[str, Any]:
        return json.loads(self.run("rebuild", model, *arguments, "--json", code=code))

    def ask(self, model: str = MODEL) -> str:
        """A greedy answer by the public name: the same engine gives the same text."""
        request = {"text_input": "Name a colour.", "max_tokens": 12, "temperature": 0.0, "seed": 1}
        return TritonClient(self.variables["ENGINEHOUSE_TRITON_HTTP"]).generate(model, request).text

    @property
    def variables(self) -> dict[str, str]:
        return json.loads((self.home / "environment.json").read_text())

    @property
    def prefect_variables(self) -> dict[str, str]:
        """Those of Prefect alone."""
        return {name: value for name, value in self.variables.items() if name.startswith("PREFECT_")}

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(Bucket.at(self.variables["ENGINEHOUSE_STORE"]))

    @property
    def target(self) -> Target:
        return Target(self.store.bucket, "local")

    def node(self) -> NodeReport:
        return self.target.nodes()[0]

    def add_model(self, name: str, change: Callable[[dict[str, Any]], None] = lambda document: None) -> None:
        """A copy of the catalogue's model under another name, changed."""
        import yaml

        document = yaml.safe_load((MODELS / f"{MODEL}.yaml").read_text())
        document["name"] = name
        change(document)
        (self.catalogue / f"{name}.yaml").write_text(yaml.safe_dump(document))

    def process(self, service: str) -> psutil.Process:
        return psutil.Process(json.loads((self.home / "services" / f"{service}.json").read_text())["pid"])

    def wait_for_work(self, kind: str) -> None:
        """Until a step writes into a folder of the build's workspace."""
        self.wait(lambda: any(self.home.glob(f"work/*/{kind}/*.partial/*")), 60, f"a {kind} in the making")

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        wait(condition, what, seconds, every_s=0.005)

    def wait_long(self, condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """As `wait`, for runs, each a process of its own, and for schedules, whose smallest step is a minute."""

        def holds() -> bool:
            with suppress(httpx.TimeoutException):  # a busy machine
                return condition()
            return False

        wait(holds, what, seconds, every_s=0.5)

    def children(self, engine: str) -> list[dict[str, Any]]:
        """Runs of the child flow for an engine, as Prefect's API lists them."""
        return self.prefect("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"engine:{engine}"]}}})

    def builds_of(self, model: str) -> list[dict[str, Any]]:
        """The runs of builds for a model; its rebuilds have the same tag."""
        builds = {"flows": {"name": {"any_": ["build_engine"]}}, "flow_runs": {"tags": {"all_": [f"model:{model}"]}}}
        return self.prefect("POST", "/flow_runs/filter", builds)

    def prefect(self, method: str, path: str, body: object = None) -> Any:
        """What Prefect's API answers."""
        variables = self.variables
        credential = variables["PREFECT_API_AUTH_STRING"]
        return prefect_api.ask(variables["PREFECT_API_URL"], method, path, body, credential=credential)

    def intact(self, report: dict[str, Any]) -> bool:
        """Whether a rebuild names artifacts, and each is in the store, byte for byte."""
        named = [ArtifactRef.parse(step["artifact"]) for step in report["steps"] if step["artifact"] is not None]
        for ref in named:
            folder = self.home / "checked" / ref.identity
            self.store.download(self.store.need(ref), folder)
            shutil.rmtree(folder)
        return bool(named)


@dataclass
class Stack:
    """The stack of a house, whose variables are in this process's environment as long as it runs."""

    house: House
    running: bool = False
    _patch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)

    def start(self) -> None:
        self.running = True
        self.house.run("up")
        for name, value in self.house.variables.items():
            self._patch.setenv(name, value)

    def end(self) -> None:
        self._patch.undo()
        self.house.run("down")
        self.running = False


_stacks: list[Stack] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "house" in getattr(item, "fixturenames", ()):
        for stack in _stacks:
            if not stack.running:
                stack.start()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """End the stack after the last test of flows: idle, it takes a quarter of a core from all tests that follow."""
    done = yield
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        for stack in _stacks:
            if stack.running:
                stack.end()
    return done


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("house")
    catalogue = folder / "models"
    catalogue.mkdir()
    shutil.copy(MODELS / f"{MODEL}.yaml", catalogue)
    (folder / "images.toml").write_text("image = []\n")
    foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = {
        **kept,
        "ENGINEHOUSE_HOME": str(folder / "home"),
        "ENGINEHOUSE_CATALOGUE": str(catalogue),
        # Leases of the killed expire while the test waits.
        "ENGINEHOUSE_LEASE_SECONDS": "5",
        # Tests start it themselves: by its schedule it would act on runs that other tests kill.
        "ENGINEHOUSE_RECONCILE_SCHEDULE": "never",
        # Every S3 call of the stack's processes is written down, for the test of the policies.
        "PYTHONPATH": os.pathsep.join([str(RECORDER), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "S3_CALLS": str(folder / "s3-calls"),
        # Files that a test may write: what the workers' pip and the release watch go by.
        "PIP_CONFIG_FILE": str(folder / "pip.conf"),
        "ENGINEHOUSE_IMAGES": str(folder / "images.toml"),
    }
    made = House(folder / "home", catalogue, environment)
    _stacks.append(Stack(made))
    _stacks[-1].start()
    return made


@pytest.fixture(scope="session")
def first(house: House) -> dict[str, Any]:
    """The report of the first rebuild of the catalogue's model, with its own recipe."""
    return house.rebuild()


@pytest.fixture(scope="session")
def refused(house: House, first: dict[str, Any]) -> dict[str, Any]:
    """The report of a rebuild of the catalogue's model with a prompt that no answer passes. The public name stays."""
    before = house.ask()

    def impossible(document: dict[str, Any]) -> None:
        document["serving"]["slots"] = 3
        document["prompts"][0]["expect"] = {"contains": ["no model ever says this"]}

    (house.catalogue / f"{MODEL}.yaml").rename(house.catalogue / "kept")
    try:
        house.add_model(MODEL, impossible)
        report = house.rebuild(code=3)
    finally:
        (house.catalogue / "kept").rename(house.catalogue / f"{MODEL}.yaml")
    assert house.ask() == before
    return report


@pytest.fixture
def live(house: House, first: dict[str, Any]) -> dict[str, Any]:
    """The same report, once its release is public, whichever release earlier tests left public."""
    if house.target.current(MODEL)[0].public != first["release"]:
        promote(house.target, MODEL, first["release"])
    return first
