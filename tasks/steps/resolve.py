"""Resolve the weights of a model: its source, the LoRA adapter that is merged into it, those that requests choose,
and what guesses its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from infra.errors import SourceError
from tasks.kinds.choice import engine_kind
from tasks.lora.config import FILES
from tasks.models.overrides import of_architecture, override
from tasks.models.source import Source
from tasks.models.spec import Model
from tasks.sources.dispatch import resolve, resolve_about
from tasks.sources.resolved import NO_ACCESS, Access, ResolvedSource
from tasks.sources.survey import survey, survey_like
from tasks.steps.export import exported_identity
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan
from tasks.store.identity import Identity
from tasks.weights.facts import WeightsFacts


@dataclass(frozen=True)
class ResolvedWeights:
    """The weights of a model, pinned to something immutable."""

    source: ResolvedSource
    adapter: ResolvedSource | None = None
    """The one that is merged."""
    adapters: Mapping[str, ResolvedSource] = field(default_factory=dict[str, ResolvedSource])
    """Those that requests choose, by name."""
    draft: ResolvedSource | None = None
    """A draft model, or heads that guess tokens."""
    like: ResolvedSource | None = None
    """Configuration and tokenizer for a source that is a checkpoint of Megatron-Bridge."""
    is_checkpoint: bool = False
    """Whether the source is a checkpoint of a training framework, which is exported first."""
    facts: WeightsFacts | None = None
    """What the source says of itself, for a kind that goes by that."""

    def __iter__(self) -> Iterator[ResolvedSource]:
        """In the order in which they are fetched: what may be refused and is small comes before what takes hours."""
        yield from self.adapters.values()
        yield from filter(None, (self.adapter, self.like, self.draft))
        yield self.source

    @property
    def tuned(self) -> ResolvedSource:
        """What fine-tuning changes: the adapter of a model that has one."""
        return self.adapter or self.source

    def plan(self, model: Model) -> Plan:
        """The plan of a rebuild of `model` with these weights."""
        adapter, draft = (
            None if weights is None else snapshot_identity(weights) for weights in (self.adapter, self.draft)
        )
        snapshot = exported_identity(model.source, self.exported) if self.exported else snapshot_identity(self.source)
        adapters = {name: snapshot_identity(each) for name, each in self.adapters.items()}
        return Plan.of(model, snapshot, adapter, draft, adapters)

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
    adapters = {name: resolve(_adapter(uri), access) for name, uri in model.adapters.items()}
    draft = None if model.draft is None else resolve(model.draft, access)
    like = None if model.source.like is None else resolve_about(model.source.like, access)
    is_checkpoint = model.source.form is not None
    return ResolvedWeights(resolve(model.source, access), adapter, adapters, draft, like, is_checkpoint)


def surveyed(model: Model, weights: ResolvedWeights, access: Access = NO_ACCESS) -> ResolvedWeights:
    """The weights with their facts, before anything large is fetched.

    Raises UsageError `weights-unfit` if the recipe cannot be made of them, and as `tasks.sources.survey.survey` does.
    """
    kind = engine_kind(model)
    if not kind.reads_config:
        return weights
    facts = survey_like(weights.like, access) if weights.is_checkpoint else survey(weights.source, access)
    if facts is None:
        return weights
    if weights.draft is not None and model.recipe.draft is not None and model.recipe.draft.is_model:
        facts = replace(facts, draft=survey(weights.draft, access))
    kind.require_weights(facts)
    return replace(weights, facts=facts)


def planned_for(model: Model, weights: ResolvedWeights) -> Model:
    """The model planned for the architecture of its weights, where that is known and its file names none."""
    return model if weights.facts is None else of_architecture(model, weights.facts.architecture)


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
