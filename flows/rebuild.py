"""Rebuild one model: from its source to its public name. Every step is cached by identity in the store."""

from __future__ import annotations

import asyncio
from typing import Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows import steps
from flows.build_engine import make
from flows.elsewhere import build_elsewhere
from flows.report import Report, report_of
from flows.task_runs import run
from infra import settings
from infra.errors import GateRefused
from infra.s3.bucket import Bucket
from tasks.finetuned.records import Finetuned, newer_ones, settle, with_newest
from tasks.models.catalogue import as_asked, catalogue_entry
from tasks.models.spec import Model
from tasks.steps.plan import Plan
from tasks.steps.roll_out import RollOut
from tasks.store.artifact import ArtifactStore
from tasks.watch.record import followed_version
from tasks.watch.verdict import version_in_use

Refresh = Literal["nothing", "fetch", "convert", "build", "assemble"]
Until = Literal["upload", "promote"]
_ORDER = ("fetch", "convert", "build", "upload", "assemble")
_AS_IN_THE_FILE: dict[str, str] = {}


# The parameters are a form in the Prefect UI too, which has a field for every type but one that may be None.
@flow(name="rebuild", flow_run_name="rebuild {model}", persist_result=False)
async def rebuild(
    model: str,
    runtime: str = "",
    recipe: dict[str, str] = _AS_IN_THE_FILE,
    targets: tuple[str, ...] = (),
    refresh: Refresh = "nothing",
    recreate: bool = False,
    until: Until = "promote",
) -> None:
    """Bring one model of the catalogue from its source to its public name.

    Its weights are those of its file, or the newest that a fine-tuning event has brought since. Whatever the store
    already has of this source, recipe and runtime is used as it is. A candidate is loaded beside the live release,
    answers the model's test prompts, and only then gets the public name.

    Args:
        model: Name of the model in the catalogue, such as smollm2-135m.
        runtime: Version of TensorRT-LLM to build with, such as 1.2.0. Empty: the one in the model's file, or the newer
            one that the release watch has moved the model to.
        recipe: Fields of its recipe to override, such as {"quantization": "q4_0"}. With {"kind": "llmapi"} an engine's
            recipe is translated; the release's record then has what changed, and what had no counterpart.
        targets: Names of the targets to roll out to. Empty: those of the model's file.
        refresh: A step to run anew, with all that follow, although the store has what they make.
        recreate: Where memory does not hold two releases, let the candidate take the live one's place before it is
            tested. The public name answers nobody meanwhile, and a refused candidate is followed by the live one again.
        until: The last step. After upload the engine is in the store, and nothing is rolled out.
    """
    report = report_of(model)
    report.flow_run = str(flow_run.id)
    report.state = "failed"
    finetuned: Finetuned | None = None
    try:
        written = catalogue_entry(settings.load().catalogue, model)
        entry, finetuned = await _with_newest(written)
        asked = as_asked(entry, recipe, runtime or await asyncio.to_thread(_version_in_use, entry))
        spec = asked.model
        anew = frozenset(_ORDER[_ORDER.index(refresh) :] if refresh != "nothing" else ())

        spec, weights = await run(report, steps.resolve, spec)
        plan = weights.plan(spec)
        for resolved in weights:
            await run(report, steps.fetch, plan, resolved, "fetch" in anew)
        if anew.isdisjoint(("convert", "build", "upload")) and _engine_is_here(plan):
            await make(plan, anew)
        else:
            await build_elsewhere(report, plan, anew)
        if until == "upload":
            report.state = "built"
            return
        await run(report, steps.assemble, plan, "assemble" in anew)

        wanted = targets or spec.targets
        for target in wanted:
            if await _overtaken(written, finetuned):
                break
            rolled = await run(report, steps.roll_out, plan, target, bool(anew), recreate, asked.lost)
            _note(report, rolled)
            if not rolled.unchanged:
                await run(report, steps.validate, plan, rolled)
                await run(report, steps.promote, plan, rolled)
                await _settle(finetuned, passed=True)
    except GateRefused:
        report.state = "refused"
        if not recipe and not runtime:  # else it need not be for the weights
            await _settle(finetuned, passed=False)
        raise
    promoted = any(step.name == "promote" for step in report.steps)
    report.state = "promoted" if promoted else "unchanged" if report.targets else "built"


async def _with_newest(model: Model) -> tuple[Model, Finetuned | None]:
    taken, finetuned = await asyncio.to_thread(with_newest, Bucket.at(settings.load().store), model)
    if finetuned is not None:
        get_run_logger().info("the weights are those that an event brought: %s", taken.weights)
    return taken, finetuned


async def _overtaken(model: Model, finetuned: Finetuned | None) -> bool:
    """Whether newer weights went live while this run was building: older ones are not to take their place."""
    newer = await asyncio.to_thread(newer_ones, Bucket.at(settings.load().store), model, finetuned)
    if newer is not None:
        get_run_logger().warning("nothing is rolled out: meanwhile newer weights went live, %s", newer.source)
    return newer is not None


async def _settle(finetuned: Finetuned | None, *, passed: bool) -> None:
    if finetuned is not None:
        await asyncio.to_thread(settle, Bucket.at(settings.load().store), finetuned, passed=passed)


def _version_in_use(model: Model) -> str | None:
    """None where it is the one of the model's file. A pinned model needs no look at the store."""
    if model.updates.policy == "pinned":
        return None
    return version_in_use(model, followed_version(Bucket.at(settings.load().store), model.name))


def _engine_is_here(plan: Plan) -> bool:
    store = ArtifactStore(Bucket.at(settings.load().store))
    return store.find(plan.checkpoint_ref) is not None and store.find(plan.engine_ref) is not None


def _note(report: Report, rolled: RollOut) -> None:
    report.targets[rolled.target] = rolled.release
    if report.release is None:
        report.release = rolled.release
