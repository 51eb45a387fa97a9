"""The Prefect layer over the steps: retries that ask the error, state `Cached`, names and artifacts for the UI.

The work is in the plain functions of `tasks`; nothing here is needed to run or test them. Prefect's own result
caching is off: the store is the only cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypedDict

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff
from pydantic import JsonValue

from flows import ui
from flows.report import Report, StepReport
from infra import settings
from infra.errors import EnginehouseError, GateRefused
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from tasks.explain.lineage import lineage
from tasks.models.overrides import in_image
from tasks.models.spec import Model
from tasks.sources.resolved import Access, ResolvedSource
from tasks.steps import assemble as assemble_step
from tasks.steps import build as build_step
from tasks.steps import convert as convert_step
from tasks.steps import fetch as fetch_step
from tasks.steps import promote as promote_step
from tasks.steps import roll_out as roll_out_step
from tasks.steps import upload as upload_step
from tasks.steps import validate as validate_step
from tasks.steps.context import Context, Done
from tasks.steps.plan import Plan
from tasks.steps.resolve import ResolvedWeights, resolve_weights, with_weights
from tasks.steps.roll_out import RollOut
from tasks.store.artifact import Artifact
from tasks.store.reporter import Reporter
from tasks.targets.references import Reference, ReleaseRef
from tasks.targets.release import Result
from tasks.trtllm.images import reported_image


async def worth_retrying(task: object, task_run: object, state: State[Any]) -> bool:
    """Whether the error that failed a task says that the same call may succeed later."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, EnginehouseError) and error.retryable


class _Options(TypedDict):
    retries: int
    retry_delay_seconds: Callable[[int], list[float]]
    retry_jitter_factor: float
    retry_condition_fn: Any
    cache_policy: Any
    persist_result: bool


# 2, 4, 8, 16, 32 s and half as much again at most: a store that is started anew is back within that.
_STEP: _Options = {
    "retries": 5,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


async def run(report: Report, name: str, step: Any, *arguments: Any) -> Any:
    """Call a step's task, note its state and time in `report`, and return its result or raise its error."""
    started = time.monotonic()
    state: State[Any] = await step(*arguments, return_state=True)
    result = await state.aresult(raise_on_failure=False)
    artifact = str(result.ref) if isinstance(result, Artifact) else None
    report.add(StepReport(name, state.name or "", round(time.monotonic() - started, 3), artifact))
    if isinstance(result, BaseException):
        raise result
    return result


def _flow_run_id() -> str:
    return str(flow_run.id or "")


async def _artifact(step: Callable[[Context], Done], work: str, label: str, progress: bool = False) -> Any:
    """Run a step that makes an artifact, in a thread, and say what came of it."""
    async with _progress(label, shown=progress) as advance:
        reporter = Reporter(advance, get_run_logger().info)
        context = Context.of(settings.load(), _flow_run_id(), work, reporter)
        done = await asyncio.to_thread(step, context)
    if done.cached:
        return Completed(name="Cached", data=done.artifact)
    if done.artifact is not None:
        await ui.show_manifest(done.artifact)
    return done.artifact


@asynccontextmanager
async def _progress(label: str, *, shown: bool) -> AsyncGenerator[Callable[[int, int], None]]:
    """A callback for bytes done: tenths go to the log, and to a progress artifact where `shown`."""
    log = get_run_logger()
    now = (0, 0)

    def advance(done: int, total: int) -> None:
        nonlocal now
        now = (done, total)

    async def follow() -> None:
        bar: ui.ProgressBar | None = None
        told = -1
        try:
            while True:
                done, total = now
                if total:
                    percent = 100 * done / total
                    if shown:
                        bar = bar or await ui.ProgressBar.create(label)
                        await bar.update(percent)
                    if int(percent / 10) > told:
                        told = int(percent / 10)
                        log.info("%s: %.0f %% of %.1f MiB", label, percent, total / 2**20)
                await asyncio.sleep(1)
        except asyncio.CancelledError:
            if shown and now[1]:  # a quick one ends before the first look at it
                bar = bar or await ui.ProgressBar.create(label)
                await bar.update(100 * now[0] / now[1])

    follower = asyncio.create_task(follow())
    try:
        yield advance
    finally:
        follower.cancel()
        await follower


@task(name="resolve", task_run_name="resolve {model.source.uri}", **_STEP)
async def resolve(model: Model, brought: str = "") -> tuple[Model, ResolvedWeights]:
    """Pin the weights to something immutable, and the recipe's image to what was reported of it.

    `brought` is where others come from than those of the model.
    """

    def pin() -> tuple[Model, ResolvedWeights]:
        bucket = Bucket.at(settings.load().store)
        require_conditional_writes(bucket)
        access = Access(s3=bucket.client)  # of the store's own endpoint and credentials
        chosen = with_weights(model, brought, access) if brought else model
        report = reported_image(bucket, chosen.recipe.planned_runtime)
        return in_image(chosen, report), resolve_weights(chosen, access)

    return await asyncio.to_thread(pin)


@task(name="fetch", task_run_name="fetch {resolved.uri}", **_STEP)
async def fetch(plan: Plan, resolved: ResolvedSource, refresh: bool) -> Any:
    """Bring the files of a source, or of an adapter, into the store."""
    access = Access(s3=Bucket.at(settings.load().store).client)
    step = partial(fetch_step.fetch, plan=plan, resolved=resolved, access=access, refresh=refresh)
    work = fetch_step.snapshot_identity(resolved).digest
    return await _artifact(step, work, f"fetch {plan.model.name}")


@task(name="convert", task_run_name="convert {plan.model.name}", **_STEP)
async def convert(plan: Plan, refresh: bool) -> Any:
    """Turn the snapshot into a checkpoint."""
    step = partial(convert_step.convert, plan=plan, refresh=refresh)
    return await _artifact(step, plan.engine.digest, f"convert {plan.model.name}")


@task(name="build", task_run_name="build {plan.model.name}", **_STEP)
async def build(plan: Plan, refresh: bool) -> Any:
    """Turn the checkpoint into an engine on this machine's disk."""
    step = partial(build_step.build, plan=plan, refresh=refresh)
    return await _artifact(step, plan.engine.digest, f"build {plan.model.name}")


@task(name="upload", task_run_name="upload {plan.model.name}", **_STEP)
async def upload(plan: Plan, replaces: str) -> Any:
    """Bring the engine to the store, in the place of the attempt `replaces` too."""
    step = partial(upload_step.upload, plan=plan, replaces=replaces)
    uploaded = await _artifact(step, plan.engine.digest, f"upload {plan.model.name}", progress=True)
    if isinstance(uploaded, Artifact):
        await _show_lineage(uploaded.ref)
    return uploaded


async def _show_lineage(reference: Reference) -> None:
    """A diagram of where it comes from, on the task that made it."""
    await ui.show_lineage(await asyncio.to_thread(lineage, Bucket.at(settings.load().store), reference))


@task(name="assemble", task_run_name="assemble {plan.model.name}", **_STEP)
async def assemble(plan: Plan, refresh: bool) -> Any:
    """Make the Triton models of a release."""
    step = partial(assemble_step.assemble, plan=plan, refresh=refresh)
    return await _artifact(step, plan.repository.digest, f"assemble {plan.model.name}")


@task(name="roll_out", task_run_name="roll out {plan.model.name} to {target}", **_STEP)
async def roll_out(plan: Plan, target: str, refresh: bool, recreate: bool, lost: Mapping[str, JsonValue]) -> Any:
    """Load a candidate beside the live release, or where asked for in its place."""
    context = Context.of(settings.load(), _flow_run_id(), plan.engine.digest)
    step = partial(roll_out_step.roll_out, context, plan, target, refresh=refresh, recreate=recreate, lost=lost)
    rolled = await asyncio.to_thread(step)
    if rolled.unchanged:
        await _show_lineage(ReleaseRef(target, plan.model.name, rolled.release))
        return Completed(name="Unchanged", data=rolled)
    await ui.show_release(context.target(target).intent(plan.model.name, rolled.release), target)
    return rolled


@task(name="validate", task_run_name="validate {plan.model.name} release {rolled.release} on {rolled.target}", **_STEP)
async def validate(plan: Plan, rolled: RollOut) -> Result:
    """Send the test prompts to the candidate."""
    context = Context.of(settings.load(), _flow_run_id(), plan.engine.digest)
    try:
        result = await asyncio.to_thread(validate_step.validate, context, plan, rolled.target, rolled.release)
    except GateRefused:
        refused = context.target(rolled.target).result(plan.model.name, rolled.release)
        if refused is not None:
            await ui.show_prompts(plan.model, refused, rolled.target)
        raise
    await ui.show_prompts(plan.model, result, rolled.target)
    return result


@task(name="promote", task_run_name="promote {plan.model.name} release {rolled.release} on {rolled.target}", **_STEP)
async def promote(plan: Plan, rolled: RollOut) -> None:
    """Move the public name to the candidate."""
    context = Context.of(settings.load(), _flow_run_id(), plan.engine.digest)
    target = context.target(rolled.target)
    await asyncio.to_thread(promote_step.promote, target, plan.model.name, rolled.release)
    await _show_lineage(ReleaseRef(rolled.target, plan.model.name, rolled.release))
