"""Kinds: one module each, behind one protocol. Adding a kind touches no flow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.serving_mode import ServingMode
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.trtllm.releases import Release


class EngineKind(Protocol):
    """One model as its kind sees it: the steps, identity fields and Triton models of what can be served."""

    def pool(self) -> str:
        """The work pool that converts and builds: `build-ARCHITECTURE`."""
        ...

    def build_machine(self) -> BuildMachine:
        """What a worker of that pool must have, where pools can choose."""
        ...

    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The command lines that convert and build would run, in order: known without the tools."""
        ...

    def tool_release(self) -> Release | None:
        """The release whose options the commands were written for. None for a kind without tables of versions."""
        ...

    def require_worker(self) -> None:
        """Return where this machine can make what was planned. Raises SettingsError and StepFailed."""
        ...

    def serving_mode(self) -> ServingMode:
        """How a node's Triton must run for it."""
        ...

    def gpus(self) -> tuple[int, ...]:
        """The GPUs of a node that a release takes, as CUDA numbers them; none where it lives in the host's memory."""
        ...

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        """Why the node of this machine cannot serve `engine`, a reason each; empty where it can."""
        ...

    def runtime(self) -> Mapping[str, str]:
        """What this process builds with, measured: versions by name."""
        ...

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        """`inputs`: the `snapshot`, and the `adapter` where the model has one."""
        ...

    def engine_identity(self, checkpoint: Identity) -> Identity: ...

    def repository_identity(self, engine: Identity) -> Identity: ...

    def kept(self) -> Mapping[str, str]:
        """Files of `scratch` that `build` gets from the store and leaves there for the next one: their keys by name."""
        ...

    def convert(self, snapshot: Path, adapter: Path | None, output: Path, scratch: Path, reporter: Reporter) -> Peak:
        """Fill the empty folder `output` with a checkpoint of the snapshot, merged with the adapter where there is one.

        `scratch` is the tools' own. Raises StepFailed.
        """
        ...

    def build(self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter) -> Peak:
        """Fill the empty folder `output` with an engine. `scratch` is the tools' own. Raises StepFailed."""
        ...

    def assemble(self, limits: bytes, output: Path) -> None:
        """Fill the empty folder `output` with Triton models of relative names: a release without its engine.

        `limits` is the engine's own LIMITS_FILE. Raises UsageError where they do not go together.
        """
        ...

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        """Memory that one loaded release takes: weights, KV cache, workspace. `limits` is the engine's own file.

        Of the host, or of each of the GPUs that the release takes.
        """
        ...


LIMITS_FILE = "limits.json"
"""What `build` leaves beside the engine's files for those who plan memory without reading the engine."""
