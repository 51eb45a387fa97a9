"""Fetch: bring a source's files into the store as a snapshot, each checked against its pin."""

from __future__ import annotations

from pathlib import Path

from tasks.context import Context, Done
from tasks.identity import Identity
from tasks.lease import held
from tasks.plan import Plan
from tasks.sources import NO_ACCESS, Access, ResolvedSource
from tasks.sources import fetch as fetch_source

_VERSION = 1


def snapshot_identity(resolved: ResolvedSource) -> Identity:
    """What a snapshot is made of: the pin alone, so that two models of one source have equal snapshots."""
    return Identity.of("fetch", _VERSION, inputs={}, fields={"source": dict(resolved.pin)})


def fetch(
    context: Context, plan: Plan, resolved: ResolvedSource, access: Access = NO_ACCESS, *, refresh: bool = False
) -> Done:
    """The snapshot in the store; `cached` where it was there. Raises SourceError, SourceUnavailable, StoreError."""
    ref = plan.snapshot_ref
    if not refresh and (found := context.store.find(ref)):
        return Done(found, cached=True)
    with held(context.store.bucket, ref.identity, context.flow_run, context.lease_seconds):
        if not refresh and (found := context.store.find(ref)):
            return Done(found, cached=True)
        if refresh:
            context.workspace.drop(ref)

        def bring(folder: Path) -> None:
            fetch_source(resolved, folder, context.progress, access)

        folder = context.workspace.make(ref, bring)
        artifact = context.store.publish(
            ref, plan.snapshot, folder, inputs={}, producer=context.producer("fetch"), replace=refresh
        )
        context.workspace.remove()
    return Done(artifact, cached=False)
