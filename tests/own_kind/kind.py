"""A kind that Enginehouse does not have: the weights are a text, and the model answers with it.

It is as a user would add one: a recipe, an object that answers for a model, and an entry in each of two tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.choice import KINDS
from tasks.kinds.protocol import LIMITS_FILE, NO_ADAPTERS, PlannedCache, RequestAdapters
from tasks.kinds.serving_mode import ServingMode
from tasks.lora.config import AdapterConfig
from tasks.models.recipe import RECIPES, Recipe
from tasks.models.spec import Model
from tasks.serving.generation import Files
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.triton.config import LLM, RELEASE, llm_config, release_config
from tasks.weights.facts import WeightsFacts

KIND = "parrot"
PHRASE = "phrase.txt"


class ParrotRecipe(Recipe):
    """A text that is said `times` times."""

    kind: Literal["parrot"]
    times: int = 1


class ParrotKind:
    reads_config: ClassVar[bool] = False

    def __init__(self, model: Model) -> None:
        assert isinstance(model.recipe, ParrotRecipe)
        self.recipe = model.recipe

    def require_weights(self, facts: WeightsFacts) -> None:
        return None

    def planned_cache(self, facts: WeightsFacts) -> PlannedCache:
        return PlannedCache()

    def planned_memory(self, facts: WeightsFacts) -> None:
        return None

    def pool(self) -> str:
        return "build-parrot"

    def build_machine(self) -> BuildMachine:
        return BuildMachine()

    def commands(self, facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        return ()

    def tool_release(self) -> None:
        return None

    def require_worker(self) -> None:
        return None

    def serving_mode(self) -> ServingMode:
        return ServingMode("single", "it needs one process")

    def gpus(self) -> tuple[int, ...]:
        return ()

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        return []

    def runtime(self) -> Mapping[str, str]:
        return {"parrot": "1"}

    def draft_model(self) -> None:
        return None

    def reference(self) -> None:
        return None

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        return Identity.of("convert", 1, inputs=inputs, fields={"kind": KIND})

    def engine_identity(self, checkpoint: Identity, draft: Identity | None = None) -> Identity:
        fields = {"kind": KIND, "times": self.recipe.times}
        return Identity.of("build", 1, inputs={"checkpoint": checkpoint}, fields=fields)

    def repository_identity(self, engine: Identity, adapters: Mapping[str, Identity]) -> Identity:
        return Identity.of("assemble", 1, inputs={"engine": engine}, fields={"kind": KIND})

    def check_adapter(self, config: AdapterConfig) -> None:
        raise AssertionError("a model of this kind has none")

    def kept(self) -> Mapping[str, str]:
        return {}

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        shutil.copyfile(snapshot / PHRASE, output / PHRASE)
        return Peak()

    def build(
        self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter, draft: Path | None = None
    ) -> Peak:
        (output / PHRASE).write_text(" ".join([(checkpoint / PHRASE).read_text()] * self.recipe.times))
        (output / LIMITS_FILE).write_text("{}")
        return Peak()

    def assemble(self, engine: Files, output: Path, adapters: RequestAdapters = NO_ADAPTERS) -> None:
        version = output / LLM / "1"
        version.mkdir(parents=True)
        (output / LLM / "config.pbtxt").write_text(llm_config(engine_in_place=True))
        shutil.copyfile(Path(__file__).with_name("served.py"), version / "model.py")
        (output / RELEASE).mkdir()
        (output / RELEASE / "config.pbtxt").write_text(release_config())

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        return engine_bytes


def register() -> None:
    """Let this process know the kind."""
    RECIPES[KIND] = ParrotRecipe
    KINDS[KIND] = ParrotKind
