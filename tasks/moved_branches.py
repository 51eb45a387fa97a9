"""Which models' weights have moved on the hub without anybody having said so."""

from __future__ import annotations

from collections.abc import Iterable

from infra.errors import SourceError, SourceUnavailable
from infra.s3 import Bucket
from tasks.artifact import ArtifactRef
from tasks.fetch import snapshot_identity
from tasks.records import Target
from tasks.source_uri import HubUri, parse
from tasks.sources import NO_ACCESS, Access, resolve
from tasks.spec import Model


def moved(bucket: Bucket, models: Iterable[Model], access: Access = NO_ACCESS) -> dict[str, str]:
    """Released models whose file follows a branch, with the branch, where it was never built as it is now.

    A branch that goes back to a commit that was built before is left to people.
    """
    found: dict[str, str] = {}
    for model in models:
        uri = parse(model.source.uri)
        if isinstance(uri, HubUri) and not uri.is_commit and _is_released(bucket, model):
            try:
                identity = snapshot_identity(resolve(model.source, access)).digest
            except (SourceError, SourceUnavailable):
                continue  # its next rebuild tells why
            # Manifests outlive their files.
            if bucket.get(f"{ArtifactRef('snapshot', model.name, identity).folder}manifest.json") is None:
                found[model.name] = uri.revision
    return found


def _is_released(bucket: Bucket, model: Model) -> bool:
    return any(Target(bucket, name).current(model.name)[0].public is not None for name in model.targets)
