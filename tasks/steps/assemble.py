"""Assemble the Triton models of a release, as an artifact that names its engine and copies no byte of it."""

from __future__ import annotations

from pathlib import Path

from tasks.kinds.protocol import RequestAdapters, by_role
from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan


def assemble(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """Return the repository in the store, `cached` if the store had it.

    Raises StoreError, UsageError, and StepFailed `adapter-unfit`.
    """

    def work(output: Path) -> None:
        engine = context.store.need(plan.engine_ref)
        names = {file.path for file in engine.manifest.files}
        scratch = context.workspace.scratch()
        adapters = RequestAdapters(
            {
                name: context.workspace.bring(context.store, ref, context.reporter.progress)
                for name, ref in plan.adapter_refs.items()
            },
            engine_file=lambda path: context.store.read_beginning(engine, path, scratch / path),
        )
        plan.kind.assemble(lambda name: context.store.read(engine, name) if name in names else None, output, adapters)

    return context.make_once(
        plan.repository_ref,
        plan.repository,
        work,
        task="assemble",
        inputs={"engine": plan.engine_ref, **by_role(plan.adapter_refs)},
        model=plan.model.name,
        refresh=refresh,
    )
