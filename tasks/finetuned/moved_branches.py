"""Branches of the hub that moved without an event."""

from __future__ import annotations

from collections.abc import Iterable

from infra.errors import SourceError, SourceUnavailable
from infra.s3.bucket import Bucket
from tasks.models.source_uri import HubUri, parse_source
from tasks.models.spec import Model
from tasks.sources.resolved import NO_ACCESS, Access
from tasks.steps.fetch import snapshot_identity
from tasks.steps.resolve import resolve_weights
from tasks.store.artifact import ArtifactRef
from tasks.store.inventory import has_fetched
from tasks.targets.target import Target


def moved(bucket: Bucket, models: Iterable[Model], access: Access = NO_ACCESS) -> dict[str, str]:
    """Released models whose file follows a branch that now has weights which were never built: the branch by model.

    A branch that went back to a commit that was built before is left to people.
    """
    found: dict[str, str] = {}
    for model in models:
        own = [parse_source(uri) for uri in (model.source.uri, model.adapter) if uri is not None]
        branches = [uri.revision for uri in own if isinstance(uri, HubUri) and not uri.is_commit]
        if branches and _is_released(bucket, model):
            try:
                weights = resolve_weights(model, access)
            except (SourceError, SourceUnavailable):
                continue  # its next rebuild reports why
            snapshots = (ArtifactRef("snapshot", snapshot_identity(resolved).digest) for resolved in weights)
            if not all(has_fetched(bucket, snapshot, model.name) for snapshot in snapshots):
                found[model.name] = " or ".join(branches)
    return found


def _is_released(bucket: Bucket, model: Model) -> bool:
    return any(Target(bucket, name).current(model.name)[0].public is not None for name in model.targets)
