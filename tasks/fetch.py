"""Fetch: bring a source's files into the store as a snapshot, each checked against its pin."""

from __future__ import annotations

from pathlib import Path

from tasks.artifact import ArtifactRef
from tasks.context import Context, Done
from tasks.identity import Identity
from tasks.lease import held
from tasks.sources import ResolvedSource
from tasks.sources import fetch as fetch_source
from tasks.spec import Model

_VERSION = 1


def snapshot_identity(model: Model, resolved: ResolvedSource) -> Identity:
    """What a snapshot is made of: the pin alone, so that two models of one source have equal snapshots."""
    return Identity.of("fetch", _VERSION, inputs={}, fields={"source": dict(resolved.pin)})


def fetch(
    context: Context, resolved: ResolvedSource, ref: ArtifactRef, identity: Identity, *, refresh: bool = False
) -> Done:
    """The snapshot in the store; `cached` where it was there. Raises SourceError, SourceUnavailable, StoreError."""
    if not refresh and (found := context.store.find(ref)):
        return Done(found, cached=True)
    with held(context.store.bucket, ref.identity, context.flow_run, context.lease_seconds):
        if not refresh and (found := context.store.find(ref)):
            return Done(found, cached=True)
        if refresh:
            context.workspace.drop(ref)

        def bring(folder: Path) -> None:
            fetch_source(resolved, folder, context.progress)

        folder = context.workspace.make(ref, bring)
        artifact = context.store.publish(
            ref, identity, folder, inputs={}, producer=context.producer("fetch"), replace=refresh
        )
    context.workspace.remove()
    return Done(artifact, cached=False)
