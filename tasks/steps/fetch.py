"""Fetch the files of a source into the store as a snapshot, each checked against its pin."""

from __future__ import annotations

from tasks.garbage.keep import note_use
from tasks.lora.config import CONFIG, parse_config
from tasks.sources.dispatch import fetch as fetch_source
from tasks.sources.resolved import NO_ACCESS, Access, ResolvedSource
from tasks.steps.adapters import check_adapter
from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.notes import note_model

_VERSION = 1


def snapshot_identity(resolved: ResolvedSource) -> Identity:
    """The identity of a snapshot: the pin alone, so that two models of one source have equal snapshots."""
    return Identity.of("fetch", _VERSION, inputs={}, fields={"source": dict(resolved.pin)})


def fetch(
    context: Context, plan: Plan, resolved: ResolvedSource, access: Access = NO_ACCESS, *, refresh: bool = False
) -> Done:
    """Return the snapshot in the store, `cached` if the store had it.

    This is the first step of a run, so it also notes the use of every artifact that the run will look for: garbage
    collection then leaves them alone. Raises SourceError, SourceUnavailable, StoreError, and StepFailed
    `adapter-unfit` for an adapter that no request could choose, or that nobody can merge.
    """
    note_use(context.store.bucket, plan.model.name, plan.refs, context.flow_run)
    identity = snapshot_identity(resolved)
    ref = ArtifactRef("snapshot", identity.digest)
    done = context.make_once(
        ref,
        identity,
        lambda folder: fetch_source(resolved, folder, context.reporter.progress, access),
        task="fetch",
        inputs={},
        model=plan.model.name,
        refresh=refresh,
    )
    note_model(context.store.bucket, ref, plan.model.name)
    if done.artifact is not None and ref in plan.adapter_refs.values():
        check_adapter(context, plan, done.artifact)
    if done.artifact is not None and ref == plan.snapshots.get("adapter"):
        parse_config(context.store.read(done.artifact, CONFIG))
    return done
