"""Convert a snapshot, with its adapter if there is one, into a checkpoint in the store."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.lora.adapter import trained_on
from tasks.models.source_uri import HubUri, parse_source
from tasks.steps.context import Context, Done
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
    if adapter is not None and (base := _other_base(adapter, plan.model.source.uri)) is not None:
        context.reporter.say(
            f"warning: the adapter was trained on {base} and is merged into {plan.model.source.uri}. "
            "If these are not the same weights, the result is worth nothing."
        )

    def work(output: Path) -> None:
        peak = plan.kind.convert(snapshot, adapter, output, context.workspace.scratch(), context.reporter, draft)
        context.workspace.note(ref, context.producer("convert", plan.kind.runtime(), peak))

    folder = context.workspace.make(ref, work)
    artifact = context.store.publish(
        ref,
        plan.checkpoint,
        folder,
        inputs=plan.snapshots,
        producer=context.workspace.noted(ref),
        model=plan.model.name,
        replaces=known.attempt,
    )
    return Done(artifact, cached=False)


def _other_base(adapter: Path, source: str) -> str | None:
    """The model that the adapter was trained on, if it is one of the Hub and not the one that `source` names there."""
    uri = parse_source(source)
    if not isinstance(uri, HubUri):
        return None
    base = trained_on(adapter) or ""
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base)
    return base if is_name and base.lower() != uri.repository.lower() else None
