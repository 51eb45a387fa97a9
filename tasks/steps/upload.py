"""Upload: the engine that `build` left on this machine's disk goes to the store, verified, then the disk is freed."""

from __future__ import annotations

from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan


def upload(context: Context, plan: Plan, *, replaces: str = "") -> Done:
    """The engine in the store; `cached` where it was there and is not the attempt `replaces`. Raises StoreError."""
    ref = plan.engine_ref
    there = context.store.look_up(ref)
    if there.artifact is not None and there.attempt != replaces:
        return Done(there.artifact, cached=True)
    artifact = context.store.publish(
        ref,
        plan.engine,
        context.workspace.folder(ref),
        inputs={"checkpoint": plan.checkpoint_ref},
        producer=context.workspace.noted(ref),
        progress=context.reporter.progress,
        replaces=replaces,
    )
    context.workspace.remove()
    return Done(artifact, cached=False)
