"""Build an engine from a checkpoint, on this machine's disk. `upload` brings it to the store."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from infra.errors import StoreError
from infra.s3.bucket import Bucket
from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan


def build(context: Context, plan: Plan, *, refresh: bool = False) -> Done:
    """Make the engine's local folder, unless the store or an earlier try has the engine (then `cached`).

    Raises StepFailed and StoreError.
    """
    ref = plan.engine_ref
    if refresh:
        context.workspace.drop(ref)
    elif found := context.store.find(ref):
        return Done(found, cached=True)
    elif context.workspace.folder(ref).is_dir():
        return Done(None, cached=True)
    checkpoint, *drafts = (
        context.workspace.bring(context.store, each, context.reporter.progress) for each in plan.engine_inputs.values()
    )
    draft = drafts[0] if drafts else None

    def work(output: Path) -> None:
        with _kept(context.store.bucket, context.workspace.scratch(), plan.kind.kept()) as scratch:
            peak = plan.kind.build(checkpoint, output, scratch, context.reporter, draft)
        context.workspace.note(ref, context.producer("build", plan.kind.runtime(), peak))

    context.workspace.make(ref, work)
    return Done(None, cached=False)


@contextmanager
def _kept(bucket: Bucket, scratch: Path, kept: Mapping[str, str]) -> Generator[Path]:
    """Copy files from the store into `scratch`, and what the block made of them back. `kept` has store keys by name.

    These files only save time. So if two builds run at once, only one writes them back, and a store that is away then
    does not fail a finished build.
    """
    before = {name: bucket.get(key) for name, key in kept.items()}
    for name, record in before.items():
        if record is not None:
            (scratch / name).write_bytes(record.body)
    yield scratch
    for name, key in kept.items():
        record, path = before[name], scratch / name
        if not path.is_file() or (record is not None and path.read_bytes() == record.body):
            continue
        try:
            if record is None:
                bucket.create(key, path.read_bytes())
            else:
                bucket.replace(key, path.read_bytes(), record.etag)
        except StoreError:
            continue
