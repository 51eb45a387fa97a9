"""Assemble: the Triton models of a release, as an artifact that names its engine and copies no byte of it."""

from __future__ import annotations

from tasks.context import Context, Done
from tasks.plan import Plan


def assemble(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """The repository in the store; `cached` where it was there. Raises StoreError."""
    ref = plan.repository_ref
    if not refresh and (found := context.store.find(ref)):
        return Done(found, cached=True)
    folder = context.workspace.make(ref, lambda output: plan.kind.assemble(plan.model, output))
    artifact = context.store.publish(
        ref,
        plan.repository,
        folder,
        inputs={"engine": plan.engine_ref},
        producer=context.producer("assemble"),
        replace=refresh,
    )
    context.workspace.remove()
    return Done(artifact, cached=False)
