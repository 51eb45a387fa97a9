"""Convert: a snapshot becomes a checkpoint in the store."""

from __future__ import annotations

from pathlib import Path

from tasks.context import Context, Done
from tasks.plan import Plan


def convert(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """The checkpoint in the store; `cached` where it was there. Raises StepFailed and StoreError."""
    ref = plan.checkpoint_ref
    there = context.store.look_up(ref)
    if not refresh and there.artifact is not None:
        return Done(there.artifact, cached=True)
    if refresh:
        context.workspace.drop(ref)
    snapshot = context.workspace.bring(context.store, plan.snapshot_ref, context.reporter.progress)

    def work(output: Path) -> None:
        peak = plan.kind.convert(plan.model, snapshot, output, context.workspace.scratch(), context.reporter)
        context.workspace.note(ref, context.producer("convert", plan.kind.runtime(plan.model), peak))

    folder = context.workspace.make(ref, work)
    artifact = context.store.publish(
        ref,
        plan.checkpoint,
        folder,
        inputs={"snapshot": plan.snapshot_ref},
        producer=context.workspace.noted(ref),
        replaces=there.attempt,
    )
    return Done(artifact, cached=False)
