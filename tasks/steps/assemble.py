"""Assemble the Triton models of a release, as an artifact that names its engine and copies no byte of it."""

from __future__ import annotations

from pathlib import Path

from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan


def assemble(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """Return the repository in the store, `cached` if the store had it. Raises StoreError and UsageError."""

    def work(output: Path) -> None:
        engine = context.store.need(plan.engine_ref)
        names = {file.path for file in engine.manifest.files}
        plan.kind.assemble(lambda name: context.store.read(engine, name) if name in names else None, output)

    return context.make_once(
        plan.repository_ref,
        plan.repository,
        work,
        task="assemble",
        inputs={"engine": plan.engine_ref},
        model=plan.model.name,
        refresh=refresh,
    )
