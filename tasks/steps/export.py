"""Export a checkpoint of a training framework into a snapshot in Hugging Face form, from which all else is made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tasks.garbage.keep import note_use
from tasks.models.source import Source
from tasks.sources.contents import check_content
from tasks.sources.names import select
from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.notes import note_model

_VERSION = 1


def exported_identity(source: Source, inputs: Mapping[str, Identity]) -> Identity:
    """The identity of the exported snapshot. `inputs` are the identities of `checkpoint`, and of `like` if there is."""
    return Identity.of("export", _VERSION, inputs=inputs, fields={"form": source.form, "exporter": source.exporter})


def export(context: Context, plan: Plan, inputs: Mapping[str, Identity], *, refresh: bool = False) -> Done:
    """Return the exported snapshot in the store, `cached` if the store had it. Raises SettingsError and StepFailed.

    What the tool wrote is held to the same rules as what is fetched.
    """
    refs = {role: ArtifactRef("snapshot", identity.digest) for role, identity in inputs.items()}
    note_use(context.store.bucket, plan.model.name, tuple(refs.values()), context.flow_run)
    source, ref = plan.model.source, plan.snapshots["snapshot"]

    def work(folder: Path) -> None:
        from tasks.exporters.run import export as run_export

        brought = {
            role: context.workspace.bring(context.store, each, context.reporter.progress) for role, each in refs.items()
        }
        scratch = context.workspace.scratch()
        output = scratch / "hf"
        run_export(source, brought["checkpoint"], brought.get("like"), output, scratch, context.reporter)
        served = Source(uri=source.uri)
        names = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
        for name in select(served, names):
            check_content(output / name, name, ())
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(output / name, folder / name)

    done = context.make_once(
        ref,
        exported_identity(source, inputs),
        work,
        task="export",
        inputs=refs,
        model=plan.model.name,
        refresh=refresh,
    )
    note_model(context.store.bucket, ref, plan.model.name)
    return done
