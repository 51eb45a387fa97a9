"""A person's decision on a candidate, as a form in the Prefect UI; and the rebuild that goes on after it."""

from __future__ import annotations

import asyncio
from typing import Literal

from prefect import get_run_logger
from prefect.client.orchestration import get_client

from flows.catalogue import catalogue_folder
from flows.flow_runs import named_flow
from flows.names import APPROVE, REBUILD, model_tag
from infra import settings
from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.finetuned.rejected import note_rejected
from tasks.steps.approve import Decided, decide
from tasks.targets.target import Target


@named_flow(APPROVE, "{decision} {model}", fleet="shown")
async def approve(
    model: str, decision: Literal["approve", "reject"], by: str, release: int = 0, target: str = "", note: str = ""
) -> None:
    """Approve or reject a candidate that waits for a person. The first decision on a release counts.

    Args:
        model: Name of the model.
        decision: Approve: it is promoted. Reject: the live release stays.
        by: Who decides. It stays in the record of the release.
        release: Number of the release. If 0, the newest one that waits.
        target: Name of the target that it waits on. If empty, the one of the worker that runs this.
        note: Why, for the record.
    """
    if not by.strip():
        raise UsageError("nobody is named", hint="say in `by` who decides", code="approval-by")
    config = settings.load()
    on = Target(Bucket.at(config.store), target or config.target)
    state = "approved" if decision == "approve" else "rejected"
    made = await asyncio.to_thread(decide, on, model, release or None, state, by.strip(), note)
    await follow(made)


async def follow(made: Decided) -> None:
    """Do what follows from a decision."""
    get_run_logger().info("%s", made)
    release = made.approval.release
    if made.approval.state == "approved":
        get_run_logger().info("run %s promotes it", await go_on(made))
    else:
        folder = await asyncio.to_thread(catalogue_folder, settings.load(), made.model)
        await asyncio.to_thread(note_rejected, made.target, folder, made.model, release, made.parameters)


async def go_on(made: Decided) -> str:
    """Start the rebuild that promotes an approved release, once. Returns the run's id."""
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(REBUILD.deployment)
        run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(made.parameters),
            name=f"rebuild {made.model}",
            tags=[model_tag(made.model)],
            idempotency_key=f"approved:{made.target.name}:{made.model}:{made.approval.release}",
        )
    return str(run.id)
