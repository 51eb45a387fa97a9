"""Build: a checkpoint becomes an engine on this machine's disk. `upload` brings it to the store."""

from __future__ import annotations

from tasks.context import Context, Done
from tasks.plan import Plan


def build(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """Make the engine's local folder, unless the store or an earlier try has it (then `cached`).

    Raises StepFailed and StoreError.
    """
    ref = plan.engine_ref
    if refresh:
        context.workspace.drop(ref)
    elif found := context.store.find(ref):
        return Done(found, cached=True)
    elif context.workspace.folder(ref).is_dir():
        return Done(None, cached=True)
    checkpoint = context.workspace.bring(context.store, plan.checkpoint_ref, context.progress)
    context.workspace.make(ref, lambda output: plan.kind.build(plan.model, checkpoint, output, context.progress))
    return Done(None, cached=False)
