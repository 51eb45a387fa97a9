"""Convert: a snapshot becomes a checkpoint in the store."""

from __future__ import annotations

from tasks.context import Context, Done
from tasks.plan import Plan


def convert(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """The checkpoint in the store; `cached` where it was there. Raises StepFailed and StoreError."""
    ref = plan.checkpoint_ref
    if not refresh and (found := context.store.find(ref)):
        return Done(found, cached=True)
    if refresh:
        context.workspace.drop(ref)
    snapshot = context.workspace.bring(context.store, plan.snapshot_ref, context.progress)
    folder = context.workspace.make(
        ref, lambda output: plan.kind.convert(plan.model, snapshot, output, context.progress)
    )
    artifact = context.store.publish(
        ref,
        plan.checkpoint,
        folder,
        inputs={"snapshot": plan.snapshot_ref},
        producer=context.producer("convert", plan.kind.runtime()),
        replace=refresh,
    )
    return Done(artifact, cached=False)
