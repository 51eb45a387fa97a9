"""Branches of the hub, newest versions of NGC and aliases of MLflow that moved without an event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from infra.errors import SettingsError, SourceError, SourceUnavailable
from infra.s3.bucket import Bucket
from tasks.finetuned.renamed import Renames
from tasks.models.source_uri import floats, parse_source
from tasks.models.spec import Model
from tasks.sources.resolved import NO_ACCESS, Access
from tasks.steps.fetch import snapshot_identity
from tasks.steps.resolve import resolve_weights
from tasks.store.artifact import ArtifactRef
from tasks.store.notes import has_fetched
from tasks.targets.target import Target


@dataclass(frozen=True)
class Moved:
    """What a model's file follows, `address`, has the weights `snapshot` (an identity), which were never fetched.

    `tuned` says whether they are what fine-tuning changes: not the source that an adapter is merged into.
    """

    model: str
    address: str
    snapshot: str
    tuned: bool


def moved(bucket: Bucket, models: Iterable[Model], access: Access = NO_ACCESS) -> Iterator[Moved]:
    """Released models whose file follows a branch or alias that now has weights which were never built.

    What went back to weights that were built before is left to people.
    """
    for model in models:
        draft = None if model.draft is None else model.draft.uri
        addresses = (model.source.uri, model.adapter, draft, *model.adapters.values())
        own = [parse_source(uri) for uri in addresses if uri is not None]
        followed = [str(uri) if floats(uri) else "" for uri in own]
        if not any(followed) or not _is_released(bucket, model):
            continue
        try:
            weights = resolve_weights(model, access)
        except (SourceError, SourceUnavailable, SettingsError):
            continue  # its next rebuild reports why
        found = filter(None, (weights.source, weights.adapter, weights.draft, *weights.adapters.values()))
        for resolved, address in zip(found, followed, strict=True):
            Renames(bucket).note_found(resolved)
            snapshot = ArtifactRef("snapshot", snapshot_identity(resolved).digest)
            if address and not has_fetched(bucket, snapshot, model.name):
                yield Moved(model.name, address, snapshot.identity, resolved is weights.tuned)


def _is_released(bucket: Bucket, model: Model) -> bool:
    return any(Target(bucket, name).current(model.name)[0].public is not None for name in model.targets)
