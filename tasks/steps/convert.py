"""Convert a snapshot, with its adapter if there is one, into a checkpoint in the store."""

from __future__ import annotations

from pathlib import Path

from tasks.lora.config import CONFIG
from tasks.steps.adapters import warn_of_other_base
from tasks.steps.context import INTO_THE_STORE, Context, Done
from tasks.steps.plan import Plan


def convert(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """Return the checkpoint in the store, `cached` if the store had it. Raises StepFailed and StoreError."""
    ref = plan.checkpoint_ref
    known = context.store.look_up(ref)
    if not refresh and known.artifact is not None:
        return Done(known.artifact, cached=True)
    if refresh:
        context.workspace.drop(ref)
    weights = {
        role: context.workspace.bring(context.store, each, context.reporter.progress)
        for role, each in plan.snapshots.items()
    }
    snapshot, adapter, draft = weights["snapshot"], weights.get("adapter"), weights.get("draft")
    if adapter is not None:
        warn_of_other_base(context, (adapter / CONFIG).read_bytes(), plan.model.source.uri)

    def work(output: Path) -> None:
        peak = plan.kind.convert(snapshot, adapter, output, context.workspace.scratch(), context.reporter, draft)
        context.workspace.note(ref, context.producer("convert", plan.kind.runtime(), peak))

    folder = context.workspace.make(ref, work)
    context.reporter.say(INTO_THE_STORE)
    artifact = context.store.publish(
        ref,
        plan.checkpoint,
        folder,
        inputs=plan.snapshots,
        producer=context.workspace.noted(ref),
        model=plan.model.name,
        progress=context.reporter.progress,
        replaces=known.attempt,
    )
    return Done(artifact, cached=False)
