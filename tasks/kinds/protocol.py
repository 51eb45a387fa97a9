"""The protocol of a kind, which flows and steps ask without knowing the kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.reference import Reference
from tasks.kinds.serving_mode import ServingMode
from tasks.lora.config import AdapterConfig
from tasks.models.spec import Model
from tasks.serving.generation import Files
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.trtllm.releases import Release
from tasks.weights.facts import WeightsFacts


@dataclass(frozen=True)
class PlannedCache:
    """The KV cache of a release. `bytes_per_token` is one token on the GPU that holds the most.

    All are None where nothing is known before the build.
    """

    bytes_per_token: int | None = None
    tokens: int | None = None
    fraction: float | None = None
    """Of the memory that weights leave free, in place of tokens."""
    notes: tuple[str, ...] = ()
    """What its planner should know."""


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes that one loaded release is planned to take, on each of its GPUs, or on the host if it takes none."""

    weights: int
    cache: int
    rest: int
    """Of the process, its activations, states and adapters."""
    capacity: int | None = None
    """Of one GPU, by its product; None where nobody knows, or on the host."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.rest


Adapted = TypeVar("Adapted")


@dataclass(frozen=True)
class RequestAdapters:
    """The adapters that requests to a release choose. `folders` has the snapshot of each by its name.

    `engine_file` gives a local copy of a file of the engine, of a large one its beginning alone: what an adapter has to
    fit is in a header.
    """

    folders: Mapping[str, Path]
    engine_file: Callable[[str], Path]

    @property
    def names(self) -> tuple[str, ...]:
        """In an order that does not depend on the model's file, as its identity does not."""
        return tuple(sorted(self.folders))


NO_ADAPTERS = RequestAdapters({}, Path)


def by_role(adapters: Mapping[str, Adapted]) -> dict[str, Adapted]:
    """Something of each adapter by the role that it has among the inputs of a repository."""
    return {f"adapter.{name}": adapted for name, adapted in adapters.items()}


class EngineKind(Protocol):
    """One model as its kind sees it: the steps, identity fields and Triton models of what can be served."""

    reads_config: ClassVar[bool]
    """Whether it goes by the `config.json` of its weights, which is then read before anything large is fetched."""

    def require_weights(self, facts: WeightsFacts) -> None:
        """Raise UsageError `weights-unfit` or `template-missing` if these weights cannot give what the file asks.

        And `gpu-too-small` if its GPUs cannot hold them, with what would.
        """
        ...

    def planned_cache(self, facts: WeightsFacts) -> PlannedCache:
        """What a release of these weights is planned to keep in its KV cache."""
        ...

    def planned_memory(self, facts: WeightsFacts) -> PlannedMemory | None:
        """What a release of these weights is planned to take. None where their sizes are not known before the fetch."""
        ...

    def pool(self) -> str:
        """The work pool that converts and builds: `build-ARCHITECTURE`."""
        ...

    def build_machine(self) -> BuildMachine:
        """What a worker of that pool must have, for pools that choose their machines."""
        ...

    def commands(self, facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        """The command lines that convert and build would run, in order. They are known without the tools.

        `facts` are those of the weights, where they are known.
        """
        ...

    def tool_release(self) -> Release | None:
        """The release whose options the commands use. None for a kind without a table of releases."""
        ...

    def require_worker(self) -> None:
        """Raise SettingsError or StepFailed if this machine cannot make what was planned."""
        ...

    def serving_mode(self) -> ServingMode:
        """How a node's Triton must run for it."""
        ...

    def gpus(self) -> tuple[int, ...]:
        """The GPUs of a node that a release takes, as CUDA numbers them. Empty if it lives in the host's memory."""
        ...

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        """The reasons why the node of this machine cannot serve `engine`. Empty if it can."""
        ...

    def runtime(self) -> Mapping[str, str]:
        """The versions that this process builds with, by name, as found on this machine."""
        ...

    def draft_model(self) -> Model | None:
        """The draft model that becomes an engine of its own, and a part of this model's. None for all others."""
        ...

    def reference(self) -> Reference | None:
        """What answers as its weights do before they are quantized. None for a kind without.

        What a machine lacks to read them, the reference itself says.
        """
        ...

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        """The checkpoint's identity. `inputs` are the `snapshot`, and an `adapter` and a `draft` if it is made of them.

        A `draft` is what guesses tokens and is no engine of its own.
        """
        ...

    def engine_identity(self, checkpoint: Identity, draft: Identity | None = None) -> Identity:
        """The identity of the engine that is built from `checkpoint`, with the engine `draft` of a draft model."""
        ...

    def repository_identity(self, engine: Identity, adapters: Mapping[str, Identity]) -> Identity:
        """The identity of the Triton models that serve `engine`, with the snapshots of `adapters` by name."""
        ...

    def check_adapter(self, config: AdapterConfig) -> None:
        """Raise StepFailed `adapter-unfit` for an adapter that no request could choose, as far as its config says."""
        ...

    def kept(self) -> Mapping[str, str]:
        """Files that outlive a build: the store's keys by file name. They lie in `scratch` before and after `build`."""
        ...

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        """Fill the empty folder `output` with a checkpoint of the snapshot, merged with the adapter if there is one.

        `draft` is the snapshot of what guesses tokens. `scratch` is a folder for the tools alone. Raises StepFailed.
        """
        ...

    def build(
        self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter, draft: Path | None = None
    ) -> Peak:
        """Fill the empty folder `output` with an engine, which takes the engine `draft` of a draft model in.

        `scratch` is for the tools alone. Raises StepFailed.
        """
        ...

    def assemble(self, engine: Files, output: Path, adapters: RequestAdapters = NO_ADAPTERS) -> None:
        """Fill the empty folder `output` with the Triton models of a release, without the engine.

        Model names are relative. `engine` reads small files of it, LIMITS_FILE among them. Raises UsageError if the
        engine cannot serve as the model's file asks, and StepFailed `adapter-unfit` if it cannot add one of `adapters`.
        """
        ...

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        """Bytes of memory that one loaded release takes: weights, KV cache, workspace.

        They count on each GPU of the release, or on the host if it takes none. `limits` is the engine's LIMITS_FILE.
        """
        ...


LIMITS_FILE = "limits.json"
"""The file beside the engine's files from which memory is planned without reading the engine. `build` writes it."""


def limits_in(engine: Files) -> bytes:
    """The LIMITS_FILE of an engine, which each has."""
    limits = engine(LIMITS_FILE)
    assert limits is not None, "build writes it"
    return limits
