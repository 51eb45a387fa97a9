"""Making one change on a Prefect server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from deployments.prefect_server.desired import Automation, Deployment, Desired, Pool
from deployments.prefect_server.difference import ResourceChange
from deployments.prefect_server.resources import SLUG, cron
from deployments.prefect_server.server import Server
from infra.errors import SettingsError
from infra.pools.templates import job_template

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.responses import DeploymentResponse


async def make(client: PrefectClient, server: Server, change: ResourceChange, wanted: Desired) -> None:
    """Make one change of `wanted`. Raises SettingsError `pool-type`, and Prefect's own errors."""
    name = change.resource.name
    match change.resource.kind:
        case "work pool":
            (pool,) = [each for each in wanted.pools if each.name == name]
            await _make_pool(client, change, pool)
        case "deployment":
            (deployment,) = [each for each in wanted.deployments if each.full_name == name]
            if name in server.deployments:
                await _update_deployment(client, server, change, deployment)
            else:
                await _create_deployment(client, server, change, deployment)
        case "automation":
            (one,) = [each for each in wanted.automations if each.name == name]
            await _make_automation(client, server, one)


async def _make_pool(client: PrefectClient, change: ResourceChange, wanted: Pool) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.workers.process import ProcessWorker

    if change.action == "changed":
        if "type" in change.new:
            raise SettingsError(
                f"the work pool {wanted.name} is not of type {wanted.type}, and Prefect cannot change that",
                hint="delete it, with the runs that wait in it (prefect work-pool delete), or keep its type: "
                f"ENGINEHOUSE_POOLS={wanted.name}=TYPE",
                code="pool-type",
            )
        await client.update_work_pool(wanted.name, WorkPoolUpdate(concurrency_limit=wanted.limit))
        return
    if wanted.type == "process":
        template = ProcessWorker.get_default_base_job_template()
    else:
        template = job_template(wanted.type, wanted.name, wanted.image, _store_address())
    await client.create_work_pool(
        WorkPoolCreate(name=wanted.name, type=wanted.type, base_job_template=template, concurrency_limit=wanted.limit)
    )
    for queue in wanted.queues:  # each below those before it, and below the queue that the pool has already
        await client.create_work_queue(queue, work_pool_name=wanted.name)


async def _create_deployment(client: PrefectClient, server: Server, change: ResourceChange, wanted: Deployment) -> None:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    if wanted.flow not in server.flows:
        server.flows[wanted.flow] = await client.create_flow_from_name(wanted.flow)
    server.created[wanted.full_name] = await client.create_deployment(
        server.flows[wanted.flow],
        wanted.name,
        schedules=[DeploymentScheduleCreate(schedule=cron(wanted), slug=SLUG)] if wanted.schedule else [],
        concurrency_limit=wanted.limit,
        # What is over the limit waits; it does not vanish.
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        pull_steps=[],
        **cast(Any, change.resource.own),
    )


async def _update_deployment(client: PrefectClient, server: Server, change: ResourceChange, wanted: Deployment) -> None:
    from prefect.client.schemas.actions import DeploymentUpdate

    known, fields = server.deployments[wanted.full_name], change.new
    if "schedule" in fields:
        del fields["schedule"]
        await _set_schedule(client, known, wanted)
    if "limit" in fields:
        fields["concurrency_limit"] = fields.pop("limit")
    if fields:
        await client.update_deployment(known.id, DeploymentUpdate.model_validate(fields))


async def _set_schedule(client: PrefectClient, known: DeploymentResponse, wanted: Deployment) -> None:
    """Create, change or delete the schedule that is Enginehouse's; all others stay."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    ours = [schedule for schedule in known.schedules if schedule.slug == SLUG]
    if not wanted.schedule:
        for schedule in ours:
            await client.delete_deployment_schedule(known.id, schedule.id)
    elif ours:
        await client.update_deployment_schedule(known.id, ours[0].id, schedule=cron(wanted))
    else:
        created = DeploymentScheduleCreate(schedule=cron(wanted), slug=SLUG)
        await client.create_deployment_schedules(known.id, [created])


async def _make_automation(client: PrefectClient, server: Server, wanted: Automation) -> None:
    made, known = server.automation(wanted), server.automations.get(wanted.name)
    if known is None:
        await client.create_automation(made)
    else:
        await client.update_automation(known.id, made.model_copy(update={"enabled": known.enabled}))


def _store_address() -> dict[str, str]:
    """The variables of this process that hold the address of the store, none of them secret."""
    names = ("ENGINEHOUSE_STORE", "ENGINEHOUSE_LEASE_SECONDS", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
    return {name: os.environ[name] for name in names if name in os.environ}
