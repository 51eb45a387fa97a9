"""Plans: every identity of a rebuild, known before anything runs, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import EngineKind
from tasks.models.spec import Model
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity

_NONE: Mapping[str, Identity] = {}


@dataclass(frozen=True)
class Plan:
    """The artifacts of one model, recipe and runtime."""

    model: Model
    snapshot: Identity
    checkpoint: Identity
    engine: Identity
    adapter: Identity | None = None
    """The snapshot of a LoRA adapter that is merged into `snapshot`."""
    adapters: Mapping[str, Identity] = field(default_factory=dict[str, Identity])
    """The snapshots of those that requests choose, by name. They are part of the repository alone."""

    @classmethod
    def of(
        cls,
        model: Model,
        snapshot: Identity,
        adapter: Identity | None = None,
        adapters: Mapping[str, Identity] = _NONE,
    ) -> Plan:
        kind = engine_kind(model)
        inputs = {"snapshot": snapshot} if adapter is None else {"snapshot": snapshot, "adapter": adapter}
        checkpoint = kind.checkpoint_identity(inputs)
        engine = kind.engine_identity(checkpoint)
        return cls(model, snapshot, checkpoint, engine, adapter, adapters)

    @cached_property
    def repository(self) -> Identity:
        return self.kind.repository_identity(self.engine, self.adapters)

    @cached_property
    def kind(self) -> EngineKind:
        """The model as its kind sees it."""
        return engine_kind(self.model)

    @property
    def refs(self) -> tuple[ArtifactRef, ...]:
        """All artifacts, in the order in which they are made."""
        made = (self.checkpoint_ref, self.engine_ref, self.repository_ref)
        return *self.snapshots.values(), *self.adapter_refs.values(), *made

    @property
    def snapshots(self) -> Mapping[str, ArtifactRef]:
        """The snapshots that the checkpoint is made of, by role: `snapshot`, and `adapter` where there is one."""
        snapshots = {"snapshot": self.snapshot, "adapter": self.adapter}
        return {
            role: ArtifactRef("snapshot", identity.digest)
            for role, identity in snapshots.items()
            if identity is not None
        }

    @property
    def adapter_refs(self) -> Mapping[str, ArtifactRef]:
        """The snapshots of the adapters that requests choose, by name."""
        return {name: ArtifactRef("snapshot", identity.digest) for name, identity in self.adapters.items()}

    @property
    def checkpoint_ref(self) -> ArtifactRef:
        return ArtifactRef("checkpoint", self.checkpoint.digest)

    @property
    def engine_ref(self) -> ArtifactRef:
        return ArtifactRef("engine", self.engine.digest)

    @property
    def repository_ref(self) -> ArtifactRef:
        return ArtifactRef("repository", self.repository.digest)
