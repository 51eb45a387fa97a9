"""Rebuild one model, from its source to its public name. The store caches every step by identity."""

from __future__ import annotations

from functools import partial
from typing import Literal

from flows import steps
from flows.build_engine import STEPS
from flows.build_on_pool import make_engine
from flows.current_rebuild import CurrentRebuild, rebuilding
from flows.flow_runs import named_flow, tag_run
from flows.names import REBUILD, WAITING, target_tag
from flows.task_runs import ends_as, run
from flows.turns import turn
from flows.waves import Targets
from tasks.steps.plan import Plan

Refresh = Literal["nothing", "fetch", "convert", "build", "assemble"]
Until = Literal["upload", "promote"]
_AS_IN_THE_FILE: dict[str, str] = {}


# The parameters are a form in the Prefect UI too, which has a field for every type but one that may be None.
@named_flow(REBUILD, "rebuild {model}")
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

    The weights are those of the model's file, or the newest that a fine-tuning event has brought since. What the store
    already has of this source, recipe and runtime is used as it is. A candidate is loaded beside the live release,
    answers the model's test prompts, passes the other gates that the model's file asks for, and only then gets the
    public name. If the file asks for a watch, the run goes on with that, and ends as refused if it gives the name back.
    Several targets get it one after the other, or in the waves of the file.

    Args:
        model: Name of the model in the catalogue, such as smollm2-135m.
        runtime: Version of TensorRT-LLM to build with, such as 1.2.0. If empty, the one in the model's file, or the
            newer one that the release watch has moved the model to.
        recipe: Fields of its recipe to override, such as {"quantization": "q4_0"}. {"kind": "llmapi"} translates an
            engine's recipe; the record of the release then lists what changed, and what has no counterpart.
        targets: Names of the targets to roll out to, in the order of its file's waves. If empty, all of the file.
        refresh: A step to run again although the store has what it makes. All steps that follow run again too.
        recreate: If memory does not hold two releases, let the candidate take the live one's place before it is
            tested. The public name answers nobody meanwhile. If the candidate is refused, the live one is loaded again.
        until: The last step. After upload the engine is in the store, and nothing is rolled out.
    """
    redo = _from(refresh)
    async with rebuilding(model, recipe, runtime) as current:
        report = current.report
        if until == "promote":
            await current.require_nodes(targets)
        entry, weights = await run(report, steps.resolve, current.model, "", until == "promote")
        plan = weights.plan(entry)
        for resolved in weights:
            await run(report, steps.fetch, plan, resolved, "fetch" in redo)
        if weights.exported:
            await run(report, steps.export, plan, weights.exported, "fetch" in redo)
        reached = () if until == "upload" else targets or entry.targets
        await tag_run(*map(target_tag, reached))
        await make_engine(report, plan, redo, reached)  # convert, build, upload
        if until == "upload":
            return None
        await run(report, steps.assemble, plan, "assemble" in redo)
        rollout = await Targets.of(current, plan, targets, afresh=bool(redo))
        await rollout.each(partial(_roll_out, current, plan, rollout, bool(redo), recreate))
    return ends_as(WAITING, None, report.asks) if report.waiting else None


async def _roll_out(
    current: CurrentRebuild, plan: Plan, rollout: Targets, refresh: bool, recreate: bool, target: str
) -> bool:
    """Bring the candidate to one target: load it, gate it, promote it. Returns False if newer weights came first."""
    report, entry = current.report, plan.model
    async with turn(target, entry.name):
        if not await rollout.goes_on():
            return False
        rolled = await run(report, steps.roll_out, plan, target, refresh, recreate, current.lost)
        report.add_release(target, rolled.release)
        if not rolled.unchanged:
            if entry.asks_reference:
                await run(report, steps.reference, plan, rolled)
            result = await run(report, steps.validate, plan, rolled)
            if entry.approval.asks and not await run(report, steps.approval, plan, rolled, result):
                report.waiting.append(target)
                return True
            if entry.rollout.shifts:
                await run(report, steps.shift_traffic, plan, rolled)
            await current.settle("passed")
            await rollout.note(target, rolled.release)
            if not await run(report, steps.promote, plan, rolled, result, rollout.overtaken):
                await rollout.goes_on()  # says why
                return False
        rollout.live[target] = rolled.release
    return True


def _from(step: Refresh) -> frozenset[str]:
    """The steps to run although the store has what they make: `step` and all that follow."""
    order = ("fetch", *STEPS, "assemble")
    return frozenset() if step == "nothing" else frozenset(order[order.index(step) :])
