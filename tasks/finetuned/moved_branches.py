"""Branches of the hub that moved without an event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from infra.errors import SourceError, SourceUnavailable
from infra.s3.bucket import Bucket
from tasks.finetuned.renamed import Renames
from tasks.models.source_uri import HubUri, parse_source
from tasks.models.spec import Model
from tasks.sources.resolved import NO_ACCESS, Access
from tasks.steps.fetch import snapshot_identity
from tasks.steps.resolve import resolve_weights
from tasks.store.artifact import ArtifactRef
from tasks.store.notes import has_fetched
from tasks.targets.target import Target


@dataclass(frozen=True)
class Moved:
    """A model's `branch` has the weights `snapshot` (an identity), which were never fetched.

    `tuned` says whether they are what fine-tuning changes: not the source that an adapter is merged into.
    """

    model: str
    branch: str
    snapshot: str
    tuned: bool


def moved(bucket: Bucket, models: Iterable[Model], access: Access = NO_ACCESS) -> Iterator[Moved]:
    """Released models whose file follows a branch that now has weights which were never built.

    A branch that went back to a commit that was built before is left to people.
    """
    for model in models:
        own = [parse_source(uri) for uri in (model.source.uri, model.adapter) if uri is not None]
        followed = [uri.revision if isinstance(uri, HubUri) and not uri.is_commit else None for uri in own]
        if not any(followed) or not _is_released(bucket, model):
            continue
        try:
            weights = resolve_weights(model, access)
        except (SourceError, SourceUnavailable):
            continue  # its next rebuild reports why
        for resolved, branch in zip(weights, followed, strict=True):
            Renames(bucket).note_found(resolved)
            snapshot = ArtifactRef("snapshot", snapshot_identity(resolved).digest)
            if branch is not None and not has_fetched(bucket, snapshot, model.name):
                yield Moved(model.name, branch, snapshot.identity, resolved is weights.tuned)


def _is_released(bucket: Bucket, model: Model) -> bool:
    return any(Target(bucket, name).current(model.name)[0].public is not None for name in model.targets)
