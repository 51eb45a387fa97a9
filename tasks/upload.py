"""Upload: the engine that `build` left on this machine's disk goes to the store, verified, then the disk is freed."""

from __future__ import annotations

from tasks.context import Context, Done
from tasks.plan import Plan


def upload(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """The engine in the store; `cached` where it was there. Raises StoreError."""
    ref = plan.engine_ref
    if not refresh and (found := context.store.find(ref)):
        return Done(found, cached=True)
    artifact = context.store.publish(
        ref,
        plan.engine,
        context.workspace.folder(ref),
        inputs={"checkpoint": plan.checkpoint_ref},
        producer=context.workspace.noted(ref),
        progress=context.reporter.progress,
        replace=refresh,
    )
    context.workspace.remove()
    return Done(artifact, cached=False)
