"""What a Prefect server has of the resources that Enginehouse wants, and how it differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from deployments.prefect_server.automations import automation, automation_fields
from deployments.prefect_server.desired import Automation, Desired, Notify
from deployments.prefect_server.difference import Resource, ResourceChange, difference
from deployments.prefect_server.resources import (
    deployment_fields,
    deployment_resource,
    pool_fields,
    pool_resource,
)
from infra.errors import SettingsError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import Automation as StoredAutomation
    from prefect.events.schemas.automations import AutomationCore

_APPLIED = "enginehouse_deployed"


@dataclass
class Server:
    """What the server has, read in a handful of requests whatever the number of resources."""

    pools: dict[str, WorkPool]
    flows: dict[str, UUID]
    deployments: dict[str, DeploymentResponse]
    automations: dict[str, StoredAutomation]
    blocks: dict[str, UUID]
    applied: dict[str, dict[str, str]] | None
    """Stamps of shared fields by resource, as they were wanted at the last deploy; None before the first."""

    created: dict[str, UUID] = field(default_factory=dict[str, UUID])
    """Deployments that this deploy has created."""

    @classmethod
    async def read(cls, client: PrefectClient, wanted: Desired) -> Server:
        """Raises SettingsError `block-missing`, and Prefect's own errors."""
        from prefect.client.schemas.filters import FlowFilter, FlowFilterName, WorkPoolFilter, WorkPoolFilterName
        from prefect.events.filters import AutomationFilter, AutomationFilterName

        flow_names = sorted({each.flow for each in wanted.deployments})
        ours = FlowFilter(name=FlowFilterName(any_=flow_names))
        pool_names = [pool.name for pool in wanted.pools]
        pools = await client.read_work_pools(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=pool_names)))
        flows = await client.read_flows(flow_filter=ours)
        name_of = {flow.id: flow.name for flow in flows}
        deployments = await client.read_deployments(flow_filter=ours)
        automation_names = [each.name for each in wanted.automations]
        automations = await client.read_automations(
            automations=AutomationFilter(name=AutomationFilterName(any_=automation_names))
        )
        variable = await client.read_variable_by_name(_APPLIED)
        return cls(
            pools={pool.name: pool for pool in pools},
            flows={name: id for id, name in name_of.items()},
            deployments={f"{name_of[each.flow_id]}/{each.name}": each for each in deployments},
            automations={each.name: each for each in automations},
            blocks={
                each.do.block: await _block(client, each.do)
                for each in wanted.automations
                if isinstance(each.do, Notify)
            },
            applied=None if variable is None else cast("dict[str, dict[str, str]]", variable.value),
        )

    def changes(self, wanted: Desired) -> Iterator[ResourceChange]:
        """What has to change for each resource that is wanted."""
        applied = self.applied or {}
        for resource in self.resources(wanted):
            match resource.kind:
                case "work pool":
                    found = pool_fields(self.pools.get(resource.name))
                case "deployment":
                    found = deployment_fields(self.deployments.get(resource.name))
                case "automation":
                    found = automation_fields(self.automations.get(resource.name))
            yield difference(resource, found, applied.get(resource.key))

    def resources(self, wanted: Desired) -> Iterator[Resource]:
        """Everything that is wanted, with the ids that this server has."""
        yield from map(pool_resource, wanted.pools)
        yield from (deployment_resource(each, self.deployments.get(each.full_name)) for each in wanted.deployments)
        for each in wanted.automations:
            yield Resource("automation", each.name, shared=automation_fields(self.automation(each)) or {})

    def automation(self, wanted: Automation) -> AutomationCore:
        ids = {name: each.id for name, each in self.deployments.items()} | self.created | self.blocks
        return automation(wanted, ids)

    async def remember(self, client: PrefectClient, wanted: Desired) -> None:
        """Note what is wanted now, so that the next deploy can distinguish its own changes from other people's."""
        from prefect.client.schemas.actions import VariableCreate, VariableUpdate

        applied = {**(self.applied or {}), **{each.key: each.stamps for each in self.resources(wanted)}}
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
            f"the Prefect server has no block '{wanted.block}', which ENGINEHOUSE_NOTIFY names",
            hint="make it in the UI under Blocks; TYPE/NAME is its type and name, such as slack-webhook/ops",
            code="block-missing",
        ) from error
