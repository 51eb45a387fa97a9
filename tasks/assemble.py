"""Assemble: the Triton models of a release, as an artifact that names its engine and copies no byte of it."""

from __future__ import annotations

from tasks.context import Context, Done
from tasks.plan import Plan


def assemble(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """The repository in the store; `cached` where it was there. Raises StoreError."""
    return context.make_once(
        plan.repository_ref,
        plan.repository,
        lambda output: plan.kind.assemble(plan.model, output),
        task="assemble",
        inputs={"engine": plan.engine_ref},
        refresh=refresh,
    )
