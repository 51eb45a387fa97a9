"""Assemble the Triton models of a release, as an artifact that names its engine and copies no byte of it."""

from __future__ import annotations

from pathlib import Path

from tasks.kinds.protocol import LIMITS_FILE
from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan


def assemble(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """Return the repository in the store, `cached` if the store had it. Raises StoreError and UsageError."""

    def work(output: Path) -> None:
        limits = context.store.read(context.store.need(plan.engine_ref), LIMITS_FILE)
        plan.kind.assemble(limits, output)

    return context.make_once(
        plan.repository_ref,
        plan.repository,
        work,
        task="assemble",
        inputs={"engine": plan.engine_ref},
        model=plan.model.name,
        refresh=refresh,
    )
