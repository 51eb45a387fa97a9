"""Resolve the weights of a model: its source, the LoRA adapter that is merged into it, and what guesses its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infra.errors import SourceError
from tasks.lora.adapter import FILES
from tasks.models.overrides import override
from tasks.models.spec import Model, Source
from tasks.sources.dispatch import resolve
from tasks.sources.resolved import NO_ACCESS, Access, ResolvedSource
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan


@dataclass(frozen=True)
class ResolvedWeights:
    """The weights of a model, pinned to something immutable."""

    source: ResolvedSource
    adapter: ResolvedSource | None = None
    draft: ResolvedSource | None = None
    """A draft model, or heads that guess tokens."""

    def __iter__(self) -> Iterator[ResolvedSource]:
        yield self.source
        yield from filter(None, (self.adapter, self.draft))

    @property
    def tuned(self) -> ResolvedSource:
        """What fine-tuning changes: the adapter of a model that has one."""
        return self.adapter or self.source

    def plan(self, model: Model) -> Plan:
        """The plan of a rebuild of `model` with these weights."""
        adapter, draft = (
            None if weights is None else snapshot_identity(weights) for weights in (self.adapter, self.draft)
        )
        return Plan.of(model, snapshot_identity(self.source), adapter, draft)


def resolve_weights(model: Model, access: Access = NO_ACCESS) -> ResolvedWeights:
    """Pin the weights of a model. Raises as `tasks.sources.dispatch.resolve` does."""
    adapter = None if model.adapter is None else resolve(_adapter(model.adapter), access)
    draft = None if model.draft is None else resolve(model.draft, access)
    return ResolvedWeights(resolve(model.source, access), adapter, draft)


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
