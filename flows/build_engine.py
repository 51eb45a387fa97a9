"""Convert, build and upload one engine, on the work pool of its architecture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any

from prefect.runtime import flow_run

from flows import steps
from flows.flow_runs import named_flow
from flows.names import BUILD_ENGINE
from flows.report import Report, current_report
from flows.task_runs import run
from infra import settings
from infra.errors import StepFailed, StoreUnavailable
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from tasks.models.spec import Model
from tasks.steps.plan import Plan
from tasks.steps.reference import require_references
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.trtllm.images import keep_report

STEPS = ("convert", "build", "upload")


@named_flow(BUILD_ENGINE, "build {model[name]} {engine:.12}")
async def build_engine(
    model: dict[str, Any],
    snapshot: dict[str, Any],
    engine: str,
    refresh: list[str],
    adapter: dict[str, Any] | None = None,
    draft: dict[str, Any] | None = None,
    references: bool = False,
) -> None:
    """Make one engine from a snapshot that is in the store. A rebuild starts this flow; people seldom do.

    Args:
        model: The model's file as JSON, with the recipe to build.
        snapshot: The identity document of the snapshot.
        engine: The identity that the rebuild planned. A worker whose runtime gives another identity refuses to build.
        refresh: Steps to run although the store has what they make.
        adapter: The identity document of the adapter's snapshot, if the model has an adapter.
        draft: The identity document of the snapshot of what guesses tokens, if its recipe has that.
        references: Also read what the weights say before they are quantized, for the gates of the model's file.
    """
    tuned, guessing = (None if document is None else Identity(document) for document in (adapter, draft))
    plan = Plan.of(Model.model_validate(model), Identity(snapshot), tuned, guessing)
    await _build(plan, engine, frozenset(refresh), references)


async def _build(plan: Plan, engine: str, refresh: frozenset[str], references: bool) -> None:
    config = settings.load()
    bucket = Bucket.at(config.store)
    await asyncio.to_thread(require_conditional_writes, bucket)
    # The lease comes before anything slow, such as the first start of a toolchain: whoever waits for this run takes it
    # for dead without one.
    async with _in_threads(held(bucket, engine, str(flow_run.id), config.lease_seconds)):
        await asyncio.to_thread(_require_planned, plan, engine)
        if references:
            await asyncio.to_thread(require_references, ArtifactStore(bucket), plan, here=True)
        # Planning goes on with assumptions while the record is missing. That is no reason to build nothing.
        with suppress(StoreUnavailable):
            await asyncio.to_thread(keep_report, bucket, plan.kind.runtime())
        report = current_report(plan.model.name)
        await make(report, plan, refresh)
        if references:
            await run(report, steps.reference_for_gates, plan)


@asynccontextmanager
async def _in_threads(blocking: AbstractContextManager[None]) -> AsyncGenerator[None]:
    """Enter and leave a context whose ends wait for the store."""
    await asyncio.to_thread(blocking.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(blocking.__exit__, None, None, None)


def _require_planned(plan: Plan, engine: str) -> None:
    plan.kind.require_worker()
    if plan.engine.digest != engine:
        raise StepFailed(
            f"this worker would build {plan.engine.digest[:12]}, and {engine[:12]} was planned: its runtime is "
            f"{dict(plan.kind.runtime())}",
            hint="run the same versions on the worker and on the machine that started the rebuild",
            code="runtime-differs",
        )


async def make(report: Report, plan: Plan, refresh: frozenset[str]) -> None:
    """Run the three steps in this process."""
    # Looked up before the work: what another run makes while this one is stopped must not be replaced.
    replaces = await asyncio.to_thread(_attempt_in_store, plan) if "upload" in refresh else ""
    await run(report, steps.convert, plan, "convert" in refresh)
    await run(report, steps.build, plan, "build" in refresh)
    await run(report, steps.upload, plan, replaces)


def _attempt_in_store(plan: Plan) -> str:
    return ArtifactStore(Bucket.at(settings.load().store)).look_up(plan.engine_ref).attempt
