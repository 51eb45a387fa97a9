"""Resolve the weights of a model: its source, and the LoRA adapter that is merged into it if the model has one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.errors import SourceError
from tasks.lora.adapter import FILES
from tasks.models.overrides import override
from tasks.models.spec import Model, Source
from tasks.sources.dispatch import resolve
from tasks.sources.resolved import NO_ACCESS, Access, ResolvedSource, without_weights
from tasks.steps.export import exported_identity
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan
from tasks.store.identity import Identity


@dataclass(frozen=True)
class ResolvedWeights:
    """The weights of a model, pinned to something immutable."""

    source: ResolvedSource
    adapter: ResolvedSource | None = None
    like: ResolvedSource | None = None
    """Configuration and tokenizer for a source that is a checkpoint of Megatron-Bridge."""
    is_checkpoint: bool = False
    """Whether the source is a checkpoint of a training framework, which is exported first."""

    def __iter__(self) -> Iterator[ResolvedSource]:
        yield self.source
        yield from filter(None, (self.adapter, self.like))

    @property
    def tuned(self) -> ResolvedSource:
        """What fine-tuning changes: the adapter of a model that has one."""
        return self.adapter or self.source

    def plan(self, model: Model) -> Plan:
        """The plan of a rebuild of `model` with these weights."""
        adapter = None if self.adapter is None else snapshot_identity(self.adapter)
        snapshot = snapshot_identity(self.source)
        return Plan.of(model, exported_identity(model.source, self.exported) if self.exported else snapshot, adapter)

    @property
    def exported(self) -> Mapping[str, Identity]:
        """What is exported before anything else, by role; empty for a source in a form that can be served."""
        if not self.is_checkpoint:
            return {}
        like = {} if self.like is None else {"like": snapshot_identity(self.like)}
        return {"checkpoint": snapshot_identity(self.source), **like}


def resolve_weights(model: Model, access: Access = NO_ACCESS) -> ResolvedWeights:
    """Pin the weights of a model. Raises as `tasks.sources.dispatch.resolve` does."""
    adapter = None if model.adapter is None else resolve(_adapter(model.adapter), access)
    like = None if model.source.like is None else without_weights(resolve(Source(uri=model.source.like), access))
    is_checkpoint = model.source.form is not None
    return ResolvedWeights(resolve(model.source, access), adapter, like, is_checkpoint)


def with_weights(model: Model, uri: str, access: Access = NO_ACCESS) -> Model:
    """The model with the weights at `uri`: an adapter to its source if `uri` holds one, else another source."""
    try:
        resolve(_adapter(uri), access)
    except SourceError as error:
        if error.code != "source-entry":
            raise
        return override(model, source=uri).model
    return override(model, adapter=uri).model


def _adapter(uri: str) -> Source:
    return Source(uri=uri, include=FILES)
