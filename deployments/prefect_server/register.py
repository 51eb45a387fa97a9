"""Make a Prefect server have the work pools, deployments and automations that Enginehouse wants, and nothing else.

`enginehouse deploy` does it on any server. `enginehouse up` does it on its own, as a program (`python -m
deployments.prefect_server.register`), so that it speaks to the server that its environment names and never to that of
the caller's Prefect profile. What is whose:

- Enginehouse's: of a deployment its entrypoint, pool, form, description and version.
- Shared (`difference.py` beside this): types of pools, limits of pools and deployments, the schedule that Enginehouse
  made, what an automation does. A variable on the server, `enginehouse_deployed`, holds what was wanted at the last
  deploy.
- People's: all else. Tags, default parameters, pauses, further schedules, job templates, whether an automation or a
  schedule is on; and every pool, deployment and automation of another name.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from deployments.prefect_server.automations import automation, automation_fields
from deployments.prefect_server.desired import Automation, Deployment, Desired, Notify, Pool, desired
from deployments.prefect_server.difference import Resource, ResourceChange, difference
from deployments.prefect_server.things import (
    SLUG,
    cron,
    deployment_fields,
    deployment_thing,
    pool_fields,
    pool_thing,
)
from infra import settings
from infra.errors import SettingsError, SpecError
from infra.pools.templates import job_template
from infra.settings import CHECKOUT, Settings
from tasks.models.catalogue import load_catalogue

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import Automation as StoredAutomation


_APPLIED = "enginehouse_deployed"


def wanted_by(here: Settings) -> Desired:
    """What the embedded stack of these settings wants. A catalogue with mistakes keeps no stack from coming up."""
    here = replace(here, pools=())  # its workers are processes
    try:
        return desired(here, load_catalogue(here.catalogue).values())
    except SpecError:
        return desired(here, ())


def sources_digest(wanted: Desired) -> str:
    """The digest of every file that the registration is made from; equal means there is nothing to register.

    The parameters' types may lie anywhere below the flows, so all of these files count.
    """
    digest = hashlib.sha256(f"{importlib.metadata.version('prefect')}\0{wanted}".encode())
    folders = [CHECKOUT / name for name in ("flows", "tasks", "infra", "deployments")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(f"{path.relative_to(CHECKOUT)}\0".encode())
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


async def deploy(
    wanted: Desired, tell: Callable[[ResourceChange], None], *, dry_run: bool = False
) -> tuple[ResourceChange, ...]:
    """Compare, `tell` every change, and then make them, unless `dry_run`. Raises Prefect's own errors."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        server = await _Server.read(client, wanted)
        changes = tuple(server.changes(wanted))
        for change in changes:
            tell(change)
        if not dry_run:
            for change in changes:
                if change.action != "unchanged":
                    await server.make(client, change, wanted)
            await server.remember(client, wanted)
        return changes


@dataclass
class _Server:
    """What the server has of what is wanted, read in a handful of requests whatever the number of things."""

    pools: dict[str, WorkPool]
    flows: dict[str, UUID]
    deployments: dict[str, DeploymentResponse]
    automations: dict[str, StoredAutomation]
    blocks: dict[str, UUID]
    applied: dict[str, dict[str, str]] | None
    """Stamps of shared fields by thing, as they were wanted at the last deploy; None before the first."""

    made: dict[str, UUID] = field(default_factory=dict[str, UUID])
    """Deployments that were not there before."""

    @classmethod
    async def read(cls, client: PrefectClient, wanted: Desired) -> _Server:
        from prefect.client.schemas.filters import FlowFilter, FlowFilterName, WorkPoolFilter, WorkPoolFilterName
        from prefect.events.filters import AutomationFilter, AutomationFilterName

        names = sorted({each.flow for each in wanted.deployments})
        of_ours = FlowFilter(name=FlowFilterName(any_=names))
        pool_names = [pool.name for pool in wanted.pools]
        pools = await client.read_work_pools(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=pool_names)))
        flows = await client.read_flows(flow_filter=of_ours)
        flow_names = {flow.id: flow.name for flow in flows}
        deployments = await client.read_deployments(flow_filter=of_ours)
        automation_names = [each.name for each in wanted.automations]
        automations = await client.read_automations(
            automations=AutomationFilter(name=AutomationFilterName(any_=automation_names))
        )
        variable = await client.read_variable_by_name(_APPLIED)
        return cls(
            pools={pool.name: pool for pool in pools},
            flows={name: id for id, name in flow_names.items()},
            deployments={f"{flow_names[each.flow_id]}/{each.name}": each for each in deployments},
            automations={each.name: each for each in automations},
            blocks={
                each.do.block: await _block(client, each.do)
                for each in wanted.automations
                if isinstance(each.do, Notify)
            },
            applied=None if variable is None else cast("dict[str, dict[str, str]]", variable.value),
        )

    def changes(self, wanted: Desired) -> list[ResourceChange]:
        applied = self.applied or {}
        return [
            *(
                difference(thing, pool_fields(self.pools.get(thing.name)), applied.get(thing.key))
                for thing in map(pool_thing, wanted.pools)
            ),
            *(
                difference(thing, deployment_fields(self.deployments.get(thing.name)), applied.get(thing.key))
                for thing in map(deployment_thing, wanted.deployments)
            ),
            *(
                difference(thing, automation_fields(self.automations.get(thing.name)), applied.get(thing.key))
                for thing in map(self._automation, wanted.automations)
            ),
        ]

    def _automation(self, wanted: Automation) -> Resource:
        return Resource("automation", wanted.name, shared=automation_fields(automation(wanted, self._ids)) or {})

    @property
    def _ids(self) -> dict[str, UUID]:
        return {name: each.id for name, each in self.deployments.items()} | self.made | self.blocks

    async def make(self, client: PrefectClient, change: ResourceChange, wanted: Desired) -> None:
        name = change.thing.name
        match change.thing.kind:
            case "work pool":
                (pool,) = [each for each in wanted.pools if each.name == name]
                await self._make_pool(client, change, pool)
            case "deployment":
                (deployment,) = [each for each in wanted.deployments if each.full_name == name]
                await self._make_deployment(client, change, deployment)
            case "automation":
                (one,) = [each for each in wanted.automations if each.name == name]
                await self._make_automation(client, one)

    async def _make_pool(self, client: PrefectClient, change: ResourceChange, wanted: Pool) -> None:
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
            WorkPoolCreate(
                name=wanted.name, type=wanted.type, base_job_template=template, concurrency_limit=wanted.limit
            )
        )
        for queue in wanted.queues:  # each below those before it, and below the queue that the pool has already
            await client.create_work_queue(queue, work_pool_name=wanted.name)

    async def _make_deployment(self, client: PrefectClient, change: ResourceChange, wanted: Deployment) -> None:
        from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
        from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

        schedules = [DeploymentScheduleCreate(schedule=cron(wanted), slug=SLUG)] if wanted.schedule else []
        known = self.deployments.get(wanted.full_name)
        if known is None:
            self.flows[wanted.flow] = self.flows.get(wanted.flow) or await client.create_flow_from_name(wanted.flow)
            made = await client.create_deployment(
                self.flows[wanted.flow],
                wanted.name,
                schedules=schedules,
                concurrency_limit=wanted.limit,
                # What is over the limit waits; it does not vanish.
                concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
                pull_steps=[],
                **change.thing.own,
            )
            self.made[wanted.full_name] = made
            return
        fields = change.new
        if "schedule" in fields:
            ours = [schedule for schedule in known.schedules if schedule.slug == SLUG]
            for schedule in ours if not schedules else ():
                await client.delete_deployment_schedule(known.id, schedule.id)
            if schedules and not ours:
                await client.create_deployment_schedules(known.id, schedules)
            elif schedules:
                await client.update_deployment_schedule(known.id, ours[0].id, schedule=cron(wanted))
            del fields["schedule"]
        if "limit" in fields:
            fields["concurrency_limit"] = fields.pop("limit")
        if fields:
            await client.update_deployment(known.id, DeploymentUpdate(**fields))

    async def _make_automation(self, client: PrefectClient, wanted: Automation) -> None:
        made = automation(wanted, self._ids)
        known = self.automations.get(wanted.name)
        if known is None:
            await client.create_automation(made)
        else:
            await client.update_automation(known.id, made.model_copy(update={"enabled": known.enabled}))

    async def remember(self, client: PrefectClient, wanted: Desired) -> None:
        """Note what is wanted now, so that the next deploy can tell its own change from other people's."""
        from prefect.client.schemas.actions import VariableCreate, VariableUpdate

        things = [*map(pool_thing, wanted.pools), *map(deployment_thing, wanted.deployments)]
        things += map(self._automation, wanted.automations)
        applied = {**(self.applied or {}), **{thing.key: thing.stamps for thing in things}}
        if self.applied is None:
            await client.create_variable(VariableCreate(name=_APPLIED, value=cast(Any, applied)))
        elif applied != self.applied:
            await client.update_variable(VariableUpdate(name=_APPLIED, value=cast(Any, applied)))


async def _block(client: PrefectClient, wanted: Notify) -> UUID:
    from prefect.exceptions import ObjectNotFound

    slug, _, name = wanted.block.partition("/")
    try:
        return (await client.read_block_document_by_name(name, slug, include_secrets=False)).id
    except ObjectNotFound as error:
        raise SettingsError(
            f"the Prefect server has no block '{wanted.block}', by which ENGINEHOUSE_NOTIFY wants to tell people",
            hint="make it in the UI under Blocks; its name there is TYPE/NAME, such as slack-webhook/ops",
            code="block-missing",
        ) from error


def _store_address() -> dict[str, str]:
    """The variables of this process that say where the store is, none of them secret."""
    names = ("ENGINEHOUSE_STORE", "ENGINEHOUSE_LEASE_SECONDS", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")
    return {name: os.environ[name] for name in names if name in os.environ}


if __name__ == "__main__":
    asyncio.run(deploy(wanted_by(settings.load()), lambda change: None))
