"""Pools and deployments as they are wanted, and as a Prefect server has them, in the same words."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any, cast

from deployments.prefect_server.desired import Deployment, Pool
from deployments.prefect_server.difference import Fields, Resource

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.client.schemas.schedules import CronSchedule

SLUG = "enginehouse"
"""Of the schedules that are ours."""


def pool_thing(wanted: Pool) -> Resource:
    return Resource("work pool", wanted.name, shared={"type": wanted.type, "limit": wanted.limit})


def pool_fields(there: WorkPool | None) -> Fields | None:
    return None if there is None else {"type": there.type, "limit": there.concurrency_limit}


def deployment_thing(wanted: Deployment) -> Resource:
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
    return Resource("deployment", wanted.full_name, own, {"schedule": wanted.schedule, "limit": wanted.limit})


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
