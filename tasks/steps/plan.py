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
    draft: Identity | None = None
    """The snapshot of a draft model, or of heads that guess tokens."""
    drafting: Plan | None = None
    """The plan of the draft model, where it is an engine of its own, which becomes part of this one."""
    adapters: Mapping[str, Identity] = field(default_factory=dict[str, Identity])
    """The snapshots of those that requests choose, by name. They are part of the repository alone."""

    @classmethod
    def of(
        cls,
        model: Model,
        snapshot: Identity,
        adapter: Identity | None = None,
        draft: Identity | None = None,
        adapters: Mapping[str, Identity] = _NONE,
    ) -> Plan:
        kind = engine_kind(model)
        own = kind.draft_model()
        drafting = None if own is None or draft is None else cls.of(own, draft)
        weights = {"snapshot": snapshot, "adapter": adapter, "draft": draft if drafting is None else None}
        checkpoint = kind.checkpoint_identity({role: each for role, each in weights.items() if each is not None})
        engine = kind.engine_identity(checkpoint, None if drafting is None else drafting.engine)
        return cls(model, snapshot, checkpoint, engine, adapter, draft, drafting, adapters)

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
        drafts = () if self.drafting is None else self.drafting.refs[:-1]  # it is no release
        made = (self.checkpoint_ref, self.engine_ref, self.repository_ref)
        return *drafts, *self.snapshots.values(), *self.adapter_refs.values(), *made

    @property
    def snapshots(self) -> Mapping[str, ArtifactRef]:
        """The snapshots that the checkpoint is made of, by role: `snapshot`, perhaps `adapter` and `draft`."""
        draft = self.draft if self.drafting is None else None
        snapshots = {"snapshot": self.snapshot, "adapter": self.adapter, "draft": draft}
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
    def engine_inputs(self) -> Mapping[str, ArtifactRef]:
        """What the engine is made of, by role: `checkpoint`, and the engine of its `draft` model where it has one."""
        drafts = {} if self.drafting is None else {"draft": self.drafting.engine_ref}
        return {"checkpoint": self.checkpoint_ref, **drafts}

    @property
    def checkpoint_ref(self) -> ArtifactRef:
        return ArtifactRef("checkpoint", self.checkpoint.digest)

    @property
    def engine_ref(self) -> ArtifactRef:
        return ArtifactRef("engine", self.engine.digest)

    @property
    def repository_ref(self) -> ArtifactRef:
        return ArtifactRef("repository", self.repository.digest)
