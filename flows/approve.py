"""A person's decision on a candidate, as a form in the Prefect UI; and the rebuild that goes on after it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from pydantic import JsonValue

from flows.names import REBUILD
from infra import settings
from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.steps.approve import decide, told
from tasks.targets.target import Target


@flow(name="approve", flow_run_name="{decision} {model}", persist_result=False)
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
    get_run_logger().info("%s release %d %s", model, made.approval.release, told(made.approval))
    if state == "approved":
        run = await go_on(on.name, model, made.approval.release, made.parameters)
        get_run_logger().info("run %s promotes it", run)


async def go_on(target: str, model: str, release: int, parameters: Mapping[str, JsonValue]) -> str:
    """Start the rebuild that promotes an approved release, once. Returns the run's id."""
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(REBUILD.deployment)
        run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters=dict(parameters),
            name=f"rebuild {model}",
            idempotency_key=f"approved:{target}:{model}:{release}",
        )
    return str(run.id)
