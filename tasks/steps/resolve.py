"""Resolve the weights of a model: its source, and the LoRA adapter that is merged into it if the model has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.errors import SourceError
from tasks.kinds.choice import engine_kind
from tasks.lora.adapter import FILES
from tasks.models.overrides import override
from tasks.models.spec import Model, Source
from tasks.sources.dispatch import resolve
from tasks.sources.resolved import NO_ACCESS, Access, ResolvedSource
from tasks.sources.survey import survey
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan
from tasks.weights.facts import WeightsFacts


@dataclass(frozen=True)
class ResolvedWeights:
    """The weights of a model, pinned to something immutable."""

    source: ResolvedSource
    adapter: ResolvedSource | None = None
    facts: WeightsFacts | None = None
    """What the source says of itself, for a kind that goes by that."""

    def __iter__(self) -> Iterator[ResolvedSource]:
        yield self.source
        if self.adapter is not None:
            yield self.adapter

    @property
    def tuned(self) -> ResolvedSource:
        """What fine-tuning changes: the adapter of a model that has one."""
        return self.adapter or self.source

    def plan(self, model: Model) -> Plan:
        """The plan of a rebuild of `model` with these weights."""
        adapter = None if self.adapter is None else snapshot_identity(self.adapter)
        return Plan.of(model, snapshot_identity(self.source), adapter)


def resolve_weights(model: Model, access: Access = NO_ACCESS) -> ResolvedWeights:
    """Pin the weights of a model. Raises as `tasks.sources.dispatch.resolve` does."""
    adapter = None if model.adapter is None else resolve(_adapter(model.adapter), access)
    return ResolvedWeights(resolve(model.source, access), adapter)


def surveyed(model: Model, weights: ResolvedWeights, access: Access = NO_ACCESS) -> ResolvedWeights:
    """The weights with their facts, before anything large is fetched.

    Raises UsageError `weights-unfit` if the recipe cannot be made of them, and as `tasks.sources.survey.survey` does.
    """
    kind = engine_kind(model)
    facts = survey(weights.source, access) if kind.reads_config else None
    if facts is not None:
        kind.require_weights(facts)
    return replace(weights, facts=facts)


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
