"""The steps as Prefect tasks: a name, a thread for the work, and artifacts in the UI for what came of it.

The work is in the plain functions of `tasks.steps`; nothing in this module is needed to run or test them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import cast

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from flows import ui
from flows.approval_page import show_request
from flows.names import UNDECIDED, WAITING
from flows.registry import register
from flows.report import OVERTAKEN
from flows.task_runs import cached_or_completed, ends_as, make_artifact, step, step_context
from flows.telling import telling
from infra import settings
from infra.errors import GateRefused, GateUndecided, UsageError
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from tasks.explain.lineage import lineage
from tasks.finetuned.renamed import Renames
from tasks.models.overrides import in_image
from tasks.models.spec import Model
from tasks.report.release import ReleaseReport, read_report
from tasks.report.stored import keep_page
from tasks.sources.resolved import Access, ResolvedSource
from tasks.steps import approve as approve_step
from tasks.steps import assemble as assemble_step
from tasks.steps import build as build_step
from tasks.steps import convert as convert_step
from tasks.steps import export as export_step
from tasks.steps import fetch as fetch_step
from tasks.steps import promote as promote_step
from tasks.steps import reference as reference_step
from tasks.steps import roll_out as roll_out_step
from tasks.steps import upload as upload_step
from tasks.steps import validate as validate_step
from tasks.steps import watch as watch_step
from tasks.steps.context import Done
from tasks.steps.plan import Plan
from tasks.steps.reference import PlannedReference
from tasks.steps.resolve import ResolvedWeights, planned_for, resolve_weights, surveyed, with_weights
from tasks.steps.roll_out import RollOut
from tasks.steps.shift_traffic import Shifting
from tasks.steps.watch import watch_key
from tasks.steps.waves import InWaves
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.store.reporter import Reporter
from tasks.targets.references import Reference, ReleaseRef
from tasks.targets.release import Result
from tasks.targets.target import Target
from tasks.targets.watch_record import WatchOutcome
from tasks.trtllm.images import reported_image
from tasks.trtllm.published import ask_indexes, require_published


@step("resolve", "resolve {model.source.uri}")
async def resolve(model: Model, brought: str = "", gated: bool = False) -> tuple[Model, ResolvedWeights]:
    """Pin the weights to something immutable, and the recipe's image to what was reported of it.

    `brought` is the address of weights to take in place of the model's own. With `gated` the gates are looked at too:
    what they would wait for in vain is refused before anything is fetched.
    """

    def pin() -> tuple[Model, ResolvedWeights, list[str]]:
        config = settings.load()
        bucket = Bucket.at(config.store)
        require_conditional_writes(bucket)
        access = Access(s3=bucket.client, mlflow=config.mlflow)  # of the store's own endpoint and credentials
        chosen = with_weights(model, brought, access) if brought else model
        runtime = chosen.recipe.planned_runtime
        unknown = require_published(runtime, config.images, ask_indexes(config.watch_indexes))
        report = reported_image(bucket, runtime)
        weights = resolve_weights(chosen, access)
        renamed = [Renames(bucket).note_found(resolved) for resolved in weights]
        weights = surveyed(chosen, weights, access)
        planned = in_image(planned_for(chosen, weights), report)
        if gated:
            plan = weights.plan(planned)
            reference_step.require_references(ArtifactStore(bucket), plan, weights.facts, here=False)
        return planned, weights, [unknown, *renamed]

    planned, weights, notes = await asyncio.to_thread(pin)
    for line in filter(None, notes):
        get_run_logger().warning("%s", line)
    if weights.facts is not None:
        get_run_logger().info("the weights: %s", weights.facts)
        if weights.facts.unclear:
            get_run_logger().warning("the KV cache gets a share of the memory: %s", weights.facts.unclear)
    return planned, weights


@step("fetch", "fetch {resolved.uri}")
async def fetch(plan: Plan, resolved: ResolvedSource, refresh: bool) -> Done:
    """Bring the files of a source, or of an adapter, into the store."""
    config = settings.load()
    access = Access(s3=Bucket.at(config.store).client, mlflow=config.mlflow)
    make = partial(fetch_step.fetch, plan=plan, resolved=resolved, access=access, refresh=refresh)
    work = fetch_step.snapshot_identity(resolved).digest
    return cached_or_completed(await make_artifact(make, work, f"fetch {plan.model.name}"))


@step("export", "export {plan.model.source.uri}")
async def export(plan: Plan, inputs: Mapping[str, Identity], refresh: bool) -> Done:
    """Turn a checkpoint of a training framework into a snapshot in Hugging Face form."""
    make = partial(export_step.export, plan=plan, inputs=inputs, refresh=refresh)
    return cached_or_completed(await make_artifact(make, plan.snapshot.digest, f"export {plan.model.name}"))


@step("convert", "convert {plan.model.name}")
async def convert(plan: Plan, refresh: bool) -> Done:
    """Turn the snapshot into a checkpoint."""
    make = partial(convert_step.convert, plan=plan, refresh=refresh)
    return cached_or_completed(await make_artifact(make, plan.engine.digest, f"convert {plan.model.name}"))


@step("build", "build {plan.model.name}")
async def build(plan: Plan, refresh: bool) -> Done:
    """Turn the checkpoint into an engine on this machine's disk."""
    make = partial(build_step.build, plan=plan, refresh=refresh)
    return cached_or_completed(await make_artifact(make, plan.engine.digest, f"build {plan.model.name}"))


@step("upload", "upload {plan.model.name}")
async def upload(plan: Plan, replaces: str) -> Done:
    """Bring the engine to the store, in place of the attempt `replaces` where that is not empty."""
    make = partial(upload_step.upload, plan=plan, replaces=replaces)
    done = await make_artifact(make, plan.engine.digest, f"upload {plan.model.name}", bar=True)
    if not done.cached:
        await _show_lineage(plan.engine_ref)
    return cached_or_completed(done)


@step("assemble", "assemble {plan.model.name}")
async def assemble(plan: Plan, refresh: bool) -> Done:
    """Make the Triton models of a release."""
    make = partial(assemble_step.assemble, plan=plan, refresh=refresh)
    return cached_or_completed(await make_artifact(make, plan.repository.digest, f"assemble {plan.model.name}"))


@step("roll_out", "roll out {plan.model.name} to {target}")
async def roll_out(plan: Plan, target: str, refresh: bool, recreate: bool, lost: Mapping[str, JsonValue]) -> RollOut:
    """Load a candidate beside the live release, or where asked for in its place."""
    context = step_context(plan.engine.digest, Reporter(say=telling()))
    rolled = await asyncio.to_thread(
        roll_out_step.roll_out, context, plan, target, refresh=refresh, recreate=recreate, lost=lost
    )
    if rolled.unchanged:
        await _show_lineage(ReleaseRef(target, plan.model.name, rolled.release))
        return ends_as("Unchanged", rolled)
    await ui.show_release(context.target(target).intent(plan.model.name, rolled.release), target)
    return rolled


@step("reference", "reference of {plan.model.name} for release {rolled.release} on {rolled.target}")
async def reference(plan: Plan, rolled: RollOut) -> None:
    """Read what the weights say before they are quantized, where a gate will compare the candidate with that."""
    context = step_context(plan.engine.digest)
    find = partial(reference_step.wanted_references, plan, context.target(rolled.target), rolled.release)
    wanted = await asyncio.to_thread(lambda: list(find()))
    await _read_references(plan.model, wanted)


@step("reference", "reference of {plan.model.name}")
async def reference_for_gates(plan: Plan) -> None:
    """The same ahead of the rollout, for a flow whose machine cannot read them."""
    await _read_references(plan.model, await asyncio.to_thread(reference_step.planned_references, plan))


async def _read_references(model: Model, wanted: Iterable[PlannedReference]) -> None:
    """A gate that says `auto` goes without a reference that cannot be read here, or not of such weights."""
    store, log = ArtifactStore(Bucket.at(settings.load().store)), get_run_logger()
    for planned in wanted:
        why = await asyncio.to_thread(reference_step.obstacle, store, planned)
        if not why:
            make = partial(reference_step.make_reference, planned=planned)
            try:
                done = await make_artifact(make, planned.ref.identity, f"reference of {model.name}")
            except UsageError as error:
                why = error.message
            else:
                log.info("%s %s", planned.ref, "was in the store" if done.cached else "was read")
        if why and planned.asked.reference == "always":
            raise reference_step.missing(model, why)
        if why:
            log.warning("%s goes without its reference: %s", model.name, why)


@step("validate", "validate {plan.model.name} release {rolled.release} on {rolled.target}")
async def validate(plan: Plan, rolled: RollOut) -> Result:
    """Have the gates measure the candidate, the test prompts first."""
    context = step_context(plan.engine.digest, Reporter(say=telling()))
    try:
        asked = cast("dict[str, JsonValue]", to_jsonable_python(flow_run.parameters))
        result = await asyncio.to_thread(validate_step.validate, context, plan, rolled.target, rolled.release, asked)
    except (GateRefused, GateUndecided):
        known = context.target(rolled.target).result(plan.model.name, rolled.release)
        if known is not None:
            await _show_result(plan, known, context.target(rolled.target))
        raise
    await _show_result(plan, result, context.target(rolled.target))
    return result if result.state == "passed" else ends_as(UNDECIDED, result)


@step("approval", "approval of {plan.model.name} release {rolled.release} on {rolled.target}")
async def approval(plan: Plan, rolled: RollOut, result: Result) -> bool:
    """Look for a person's decision. Returns False while the candidate waits for one, and shows what it is about."""
    target, model = step_context(plan.engine.digest).target(rolled.target), plan.model.name
    if not approve_step.needs_person(plan.model, result):
        return True
    decision = await asyncio.to_thread(approve_step.approval, target, model, rolled.release)
    if decision is not None:
        get_run_logger().info("release %d %s", rolled.release, approve_step.told(decision))
        return True
    intent = target.intent(model, rolled.release)
    await show_request(await asyncio.to_thread(read_report, target, intent, now=False))
    return ends_as(WAITING, False)


@step("shift_traffic", "shift traffic of {plan.model.name} to release {rolled.release} on {rolled.target}")
async def shift_traffic(plan: Plan, rolled: RollOut) -> None:
    """Give the candidate a share of the requests, or copies of them, step by step as the model's file says."""
    context = step_context(plan.engine.digest, Reporter(say=telling()))
    shifting = Shifting(context, plan, rolled.target, rolled.release)
    # It waits here and not in the thread: a run that is cancelled ends at once.
    wait_s = await asyncio.to_thread(shifting.look)
    while wait_s is not None:
        await asyncio.sleep(wait_s)
        wait_s = await asyncio.to_thread(shifting.look)


@step("promote", "promote {plan.model.name} release {rolled.release} on {rolled.target}")
async def promote(plan: Plan, rolled: RollOut, result: Result, unless: Callable[[], bool]) -> bool:
    """Move the public name to the candidate, from the release that the gates compared it with.

    Returns False if `unless` says yes at that moment, and the name stayed.
    """
    context = step_context(plan.engine.digest)
    target = context.target(rolled.target)
    await asyncio.to_thread(watch_step.begin, target, plan.model, rolled.release, context.flow_run)
    move = partial(
        promote_step.promote, unless=unless, instead_of=result.live, flow_run=context.flow_run, say=telling()
    )
    if not await asyncio.to_thread(move, target, plan.model.name, rolled.release):
        return ends_as(OVERTAKEN, False)
    await _show_lineage(ReleaseRef(rolled.target, plan.model.name, rolled.release))
    await register(target, plan.model)
    return True


@step("watch", "watch {plan.model.name} release {release} on {target}")
async def watch(plan: Plan, target: str, release: int) -> WatchOutcome | None:
    """Watch what clients see of a release that was promoted, and give the public name back if they fare worse."""
    context, say = step_context(plan.engine.digest), telling()
    name, run = plan.model.name, context.flow_run

    def look() -> WatchOutcome | None:
        with held(context.store.bucket, watch_key(target, name), run, context.lease_seconds):
            return watch_step.watch(context.target(target), plan.model, release, flow_run=run, say=say)

    outcome = await asyncio.to_thread(look)
    return ends_as("Over" if outcome is None else outcome.state.capitalize(), outcome)


@step("give_back", "give back {plan.model.name}")
async def give_back(plan: Plan, rollout: InWaves) -> list[str]:
    """Give the previous release back on the targets that a refused rollout has moved. Says what came of each."""
    lines = await asyncio.to_thread(rollout.give_back)
    for line in lines:
        get_run_logger().warning("%s", line)
    return ends_as("Returned", lines)


async def _show_result(plan: Plan, result: Result, target: Target) -> None:
    """Show the verdict on the task, and keep the page of the release beside it."""

    def kept() -> ReleaseReport:
        report = read_report(target, target.intent(plan.model.name, result.release), now=False)
        keep_page(target, report)
        return report

    await ui.show_result(plan.model, result, target.name)
    await ui.show_report(await asyncio.to_thread(kept))


async def _show_lineage(reference: Reference) -> None:
    """Show where something comes from, as a diagram on the task that made it."""
    await ui.show_lineage(await asyncio.to_thread(lineage, Bucket.at(settings.load().store), reference))
