"""`enginehouse plan`: what a rebuild would do. It needs no GPU, no TensorRT-LLM, and of a network only small files.

Whoever does not answer is named and left out: source, store and index each cost their own lines of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

from pydantic import ValidationError

from deployments.cli.bounded import within
from infra.errors import SettingsError, SourceError, SourceUnavailable, StepFailed, StoreError
from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.explain.outlook import Outlook, outlook
from tasks.finetuned.records import with_newest
from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import EngineKind, PlannedMemory
from tasks.models.overrides import in_image, of_architecture, override
from tasks.models.source import Source
from tasks.models.source_uri import FileUri, parse_source
from tasks.models.spec import Model
from tasks.sources import file
from tasks.sources.resolved import Access
from tasks.sources.survey import survey_source
from tasks.steps.plan import Plan
from tasks.steps.resolve import ResolvedWeights, planned_for, resolve_weights, surveyed
from tasks.trtllm.images import reported_image
from tasks.trtllm.llmapi.translate import Translation
from tasks.trtllm.published import ask_indexes, require_published
from tasks.watch.record import followed_version
from tasks.watch.verdict import version_in_use
from tasks.weights.facts import WeightsFacts

SOURCE_SECONDS = 15.0
"""How long a source is waited for, with all that is asked of it."""
STORE_SECONDS = 15.0
"""The same of the store."""
_MOST_BYTES = 256 << 20
"""Of local files, which are read whole for their pin: half a second. Of larger ones a plan knows no identity."""
_AWAY = ("source-missing", "source-gated", "source-revision", "source-mirror")
"""Errors of a source that cannot be seen from here. Its worker may see it."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for beside the model's file. `targets` are those of the file if none are named."""

    recipe: Mapping[str, str] = field(default_factory=dict[str, str])
    runtime: str | None = None
    targets: tuple[str, ...] = ()
    offline: bool = False


@dataclass(frozen=True)
class Preview:
    """A model as it would be built. `translation` is set where its kind is another than its file's."""

    model: Model
    translation: Translation | None = None
    image: str = ""
    """Digest of the image that was reported to hold the TensorRT; empty where the TensorRT is assumed."""
    facts: WeightsFacts | None = None
    """What the weights say of themselves, where they could be asked."""
    weights: ResolvedWeights | None = None
    """The weights as they are pinned, where they could be."""
    plan: Plan | None = None
    """All identities, where the weights are pinned and this machine has what they follow from."""
    outlook: Outlook | None = None
    """What the store says, where there is one that answers."""
    unknown: tuple[str, ...] = ()
    """What could not be found out, and why, a sentence each."""

    @cached_property
    def kind(self) -> EngineKind:
        return engine_kind(self.model)

    @cached_property
    def memory(self) -> PlannedMemory | None:
        """What a release is planned to take, where the weights say it."""
        return None if self.facts is None else self.kind.planned_memory(self.facts)

    def without(self, what: str) -> Preview:
        return replace(self, unknown=(*self.unknown, what))


def preview(model: Model, overrides: Mapping[str, str], tensorrt_llm: str | None) -> Preview:
    """The model as `override` gives it. From TensorRT-LLM 1.3 on, an engine becomes kind `llmapi` without asking."""
    if tensorrt_llm is not None and (kind := model.recipe.successor(tensorrt_llm)) is not None:
        overrides = {"kind": kind, **overrides}
    overridden = override(model, recipe=overrides, tensorrt_llm=tensorrt_llm)
    return Preview(overridden.model, overridden.translation)


def look(entry: Model, asked: Asked, settings: Settings) -> Preview:
    """All that can be found out about a rebuild of the catalogue's `entry`.

    Raises UsageError for what a rebuild would refuse before it makes anything: `version-missing`, `gpu-too-small`,
    `weights-unfit` and what else `require_weights` says; and as `override` does.
    """
    bucket = Bucket.at(settings.store) if settings.store else None
    store = _Store(bucket)
    newest, version = store.ask(lambda known: _in_use(known, entry, asked.runtime)) or (entry, asked.runtime)
    shown = preview(newest, asked.recipe, version)
    shown = store.ask(lambda known: with_image(shown, known)) or shown
    if store.problem:
        shown = shown.without(f"{store.problem}: what an image holds is assumed, and what the store has is not known")
    ask = None if asked.offline else ask_indexes(settings.watch_indexes)
    if unknown := require_published(shown.model.recipe.planned_runtime, settings.images, ask):
        shown = shown.without(unknown)
    if not asked.offline:
        shown = _with_source(shown, Access(s3=None if bucket is None else bucket.client, mlflow=settings.mlflow))
    shown = _with_plan(shown)
    targets = asked.targets or shown.model.targets
    found = store.ask(
        lambda known: outlook(known, shown.model, shown.kind, targets, shown.plan, shown.weights, shown.memory)
    )
    if found is None and store.problem and not any(store.problem in line for line in shown.unknown):
        shown = shown.without(f"{store.problem}: what the store has is not known")
    return replace(shown, outlook=found)


@dataclass
class _Store:
    """Asks a store until it does not answer: each further question would wait as long."""

    bucket: Bucket | None
    problem: str = ""

    def ask(self, work: Callable[[Bucket], _T]) -> _T | None:
        """The answer; None without a store, or if it does not answer, or not with what can be read."""
        if (bucket := self.bucket) is None or self.problem:
            return None
        try:
            return within(STORE_SECONDS, "the store", lambda: work(bucket))
        except (StoreError, SourceUnavailable) as error:
            self.problem = str(error)
        except ValidationError as error:
            self.problem = f"a record of the store cannot be read: {error.title}"
        return None


def _in_use(bucket: Bucket, entry: Model, runtime: str | None) -> tuple[Model, str | None]:
    """The model with the weights that events brought, and the version of TensorRT-LLM that a rebuild takes."""
    newest, _ = with_newest(bucket, entry)
    if runtime is not None or newest.updates.policy == "pinned":
        return newest, runtime
    return newest, version_in_use(newest, followed_version(bucket, newest.name))


def with_image(shown: Preview, bucket: Bucket) -> Preview:
    """The preview with what the store knows of the recipe's image. Raises UsageError `version-mismatch`, StoreError."""
    report = reported_image(bucket, shown.model.recipe.planned_runtime)
    model = in_image(shown.model, report)
    return replace(shown, model=model, image=report.digest if report is not None and report.tensorrt else "")


def _with_source(shown: Preview, access: Access) -> Preview:
    """The preview with what its source says. One that cannot be seen from here is named."""
    try:
        return within(SOURCE_SECONDS, shown.model.source.uri, lambda: with_weights(shown, access))
    except (SourceError, SourceUnavailable, SettingsError) as error:
        if isinstance(error, SourceError) and error.code not in _AWAY:
            raise
        hint = f" ({error.hint})" if error.hint and error.code in _AWAY else ""
        return shown.without(f"{error}: what its weights are is not known{hint}")


def with_weights(shown: Preview, access: Access) -> Preview:
    """The preview with its weights, as far as they can be pinned, and with their facts for a kind that goes by them.

    Raises UsageError if the recipe cannot be made of them, and as `survey_source` does.
    """
    model = shown.model
    if _read_for_pins(model) <= _MOST_BYTES:
        weights = surveyed(model, resolve_weights(model, access), access)
        return replace(shown, model=planned_for(model, weights), facts=weights.facts, weights=weights)
    large = "files of this machine are read whole for their identity, which a plan does not do with large ones"
    shown = shown.without(large)
    facts = survey_source(model.source, access) if shown.kind.reads_config else None
    if facts is None:
        return shown
    draft = model.recipe.draft
    if model.draft is not None and draft is not None and draft.is_model:
        facts = replace(facts, draft=survey_source(model.draft, access))
    shown.kind.require_weights(facts)
    return replace(shown, model=of_architecture(model, facts.architecture), facts=facts)


def _read_for_pins(model: Model) -> int:
    """Bytes of local files that a pin of the model's weights reads."""
    return sum(size for source in _sources(model) for size in _local_sizes(source))


def _sources(model: Model) -> Iterator[Source]:
    yield model.source
    yield from (Source(uri=uri) for uri in (model.adapter, *model.adapters.values()) if uri is not None)
    if model.draft is not None:
        yield model.draft


def _local_sizes(source: Source) -> Sequence[int]:
    uri = parse_source(source.uri)
    return [*file.sizes(source, uri).values()] if isinstance(uri, FileUri) else []


def _with_plan(shown: Preview) -> Preview:
    """The preview with all identities, where its weights are pinned. Some follow from packages of this machine."""
    if shown.weights is None:
        return shown
    try:
        return replace(shown, plan=shown.weights.plan(shown.model))
    except (SettingsError, StepFailed) as error:
        return shown.without(f"{error}: so the identities of its steps are not known here")
