"""Upload the engine that `build` left on this machine's disk to the store, verify it there, and free the disk."""

from __future__ import annotations

from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan


def upload(context: Context, plan: Plan, *, replaces: str = "") -> Done:
    """Return the engine in the store, `cached` if the store had another attempt than `replaces`. Raises StoreError."""
    ref = plan.engine_ref
    known = context.store.look_up(ref)
    if known.artifact is not None and known.attempt != replaces:
        return Done(known.artifact, cached=True)
    artifact = context.store.publish(
        ref,
        plan.engine,
        context.workspace.folder(ref),
        inputs=plan.engine_inputs,
        producer=context.workspace.noted(ref),
        model=plan.model.name,
        progress=context.reporter.progress,
        replaces=replaces,
    )
    context.workspace.remove()
    return Done(artifact, cached=False)
