"""Pools, deployments and automations as they are wanted, and as a Prefect server has them, in the same words."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from deployments.desired import Automation, Deployment, Pool
from deployments.difference import Fields, Thing

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.events.schemas.automations import AutomationCore

SLUG = "enginehouse"
"""Of the schedules that are ours."""

_NOT_YET = UUID(int=0)


def pool_thing(wanted: Pool) -> Thing:
    return Thing("work pool", wanted.name, shared={"type": wanted.type, "limit": wanted.limit})


def pool_fields(there: WorkPool | None) -> Fields | None:
    return None if there is None else {"type": there.type, "limit": there.concurrency_limit}


def deployment_thing(wanted: Deployment) -> Thing:
    from prefect.utilities.callables import parameter_schema

    flow = cast("Flow[..., Any]", getattr(importlib.import_module(wanted.module), wanted.flow))
    if flow.name != wanted.flow:  # by default Prefect turns underscores into hyphens
        raise ValueError(f"the flow of {wanted.full_name} calls itself '{flow.name}'")
    own = {
        "version": flow.version,
        "description": flow.description,
        "entrypoint": f"{wanted.module}.{wanted.flow}",
        "work_pool_name": wanted.pool,
        "enforce_parameter_schema": True,
        # As it comes back from the server.
        "parameter_openapi_schema": json.loads(json.dumps(parameter_schema(flow).model_dump(exclude_unset=True))),
    }
    return Thing("deployment", wanted.full_name, own, {"schedule": wanted.schedule, "limit": wanted.limit})


def deployment_fields(there: DeploymentResponse | None) -> Fields | None:
    if there is None:
        return None
    ours = [schedule.schedule for schedule in there.schedules if schedule.slug == SLUG]
    limit = there.global_concurrency_limit
    return {
        "version": there.version,
        "description": there.description,
        "entrypoint": there.entrypoint,
        "work_pool_name": there.work_pool_name,
        "enforce_parameter_schema": there.enforce_parameter_schema,
        "parameter_openapi_schema": there.parameter_openapi_schema,
        # Somebody may have made another kind of schedule of it.
        "schedule": getattr(ours[0], "cron", str(ours[0])) if ours else "",
        "limit": limit.limit if limit is not None else None,
    }


def cron(wanted: Deployment) -> CronSchedule:
    from prefect.client.schemas.schedules import CronSchedule

    return CronSchedule(cron=wanted.schedule, timezone="UTC")


def automation(wanted: Automation, ids: Mapping[str, UUID]) -> AutomationCore:
    """As Prefect has it, with the ids of the deployments on its server. One that is still to be made has a null id."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=wanted.name,
        description=wanted.description,
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in wanted.after},
            match=cast(Any, {"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=cast(
                Any,
                [
                    {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{wanted.tag}"},
                    {
                        "prefect.resource.role": "deployment",
                        "prefect.resource.id": f"prefect.deployment.{ids.get(wanted.of, _NOT_YET)}",
                    },
                ],
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=cast(Any, [RunDeployment.model_validate({"deployment_id": ids.get(wanted.runs, _NOT_YET)})]),
    )


def automation_fields(there: AutomationCore | None) -> Fields | None:
    if there is None:
        return None
    told = there.model_dump(mode="json", include={"description", "trigger", "actions"})
    for name in ("after", "expect", "for_each"):  # sets, in any order
        if name in told["trigger"]:
            told["trigger"][name] = sorted(told["trigger"][name])
    told["trigger"].pop("id", None)
    return told
