"""Kinds: one module each, behind one protocol. Adding a kind touches no flow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from infra.errors import UsageError
from infra.s3 import Progress
from tasks.identity import Identity
from tasks.spec import Model


class EngineKind(Protocol):
    """Steps, identity fields and Triton models of one kind of artifact that can be served."""

    def pool(self, model: Model) -> str:
        """The work pool that converts and builds: `build-ARCHITECTURE`."""
        ...

    def runtime(self) -> Mapping[str, str]:
        """What this process would build with, measured: versions by name."""
        ...

    def checkpoint_identity(self, model: Model, snapshot: Identity) -> Identity: ...

    def engine_identity(self, model: Model, checkpoint: Identity) -> Identity: ...

    def repository_identity(self, model: Model, engine: Identity) -> Identity: ...

    def convert(self, model: Model, snapshot: Path, output: Path, progress: Progress) -> None:
        """Fill the empty folder `output` with a checkpoint. Raises StepFailed."""
        ...

    def build(self, model: Model, checkpoint: Path, output: Path, progress: Progress) -> None:
        """Fill the empty folder `output` with an engine. Raises StepFailed."""
        ...

    def assemble(self, model: Model, output: Path) -> None:
        """Fill the empty folder `output` with Triton models of relative names: a release without its engine."""
        ...

    def memory_bytes(self, model: Model, engine_bytes: int, limits: bytes) -> int:
        """Memory that one loaded release takes: weights, KV cache, workspace. `limits` is the engine's own file."""
        ...


LIMITS_FILE = "limits.json"
"""What `build` leaves beside the engine's files for those who plan memory without reading the engine."""


def engine_kind(model: Model) -> EngineKind:
    """The module of the model's kind. Raises UsageError where this version of Enginehouse cannot build it."""
    if model.recipe.kind == "llamacpp":
        from tasks.engines.llamacpp import LlamaCpp

        return LlamaCpp()
    raise UsageError(
        f"{model.name} is of kind {model.recipe.kind}, whose steps are not here yet",
        hint="kind llamacpp is built and served by this version",
        code="kind-unavailable",
    )
