"""Pools and deployments as they are wanted, and as a Prefect server has them, with the same names of fields."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from deployments.prefect_server.choices import with_choices
from deployments.prefect_server.desired import Deployment, Pool
from deployments.prefect_server.difference import Fields, Resource
from flows.names import FLEET_KEY

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.client.schemas.schedules import CronSchedule

SLUG = "enginehouse"
"""The slug of the schedules that Enginehouse made."""


def pool_resource(wanted: Pool) -> Resource:
    return Resource("work pool", wanted.name, shared={"type": wanted.type, "limit": wanted.limit})


def pool_fields(found: WorkPool | None) -> Fields | None:
    return None if found is None else {"type": found.type, "limit": found.concurrency_limit}


def flow_of(wanted: Deployment) -> Flow[..., Any]:
    flow = cast("Flow[..., Any]", getattr(importlib.import_module(wanted.module), wanted.flow))
    if flow.name != wanted.flow:  # by default Prefect turns underscores into hyphens
        raise ValueError(f"the flow of {wanted.full_name} has the name '{flow.name}'")
    return flow


def description(flow: Flow[..., Any]) -> str:
    """What the UI shows of a deployment, with a link from there to the page of the fleet."""
    return f"{flow.description}\n\n[The fleet](../../artifacts/key/{FLEET_KEY}) as the last run left it."


def deployment_resource(wanted: Deployment, found: DeploymentResponse | None) -> Resource:
    """`found` is the one that the server has, whose further tags are people's, and stay."""
    from prefect.utilities.callables import parameter_schema

    flow = flow_of(wanted)
    own: dict[str, JsonValue] = {
        "version": flow.version,
        "description": description(flow),
        "entrypoint": wanted.entrypoint,
        "work_pool_name": wanted.pool,
        "tags": [*sorted({*wanted.tags, *(found.tags if found else ())})],
        "enforce_parameter_schema": True,
        # As it comes back from the server.
        "parameter_openapi_schema": with_choices(
            json.loads(json.dumps(parameter_schema(flow).model_dump(exclude_unset=True))), wanted.choices
        ),
    }
    return Resource("deployment", wanted.full_name, own, {"schedule": wanted.schedule, "limit": wanted.limit})


def deployment_fields(found: DeploymentResponse | None) -> Fields | None:
    if found is None:
        return None
    ours = [schedule.schedule for schedule in found.schedules if schedule.slug == SLUG]
    limit = found.global_concurrency_limit
    return {
        "version": found.version,
        "description": found.description,
        "entrypoint": found.entrypoint,
        "work_pool_name": found.work_pool_name,
        "tags": [*sorted(found.tags)],
        "enforce_parameter_schema": found.enforce_parameter_schema,
        "parameter_openapi_schema": found.parameter_openapi_schema,
        # Somebody may have made another kind of schedule of it.
        "schedule": getattr(ours[0], "cron", str(ours[0])) if ours else "",
        "limit": limit.limit if limit is not None else None,
    }


def cron(wanted: Deployment) -> CronSchedule:
    from prefect.client.schemas.schedules import CronSchedule

    return CronSchedule(cron=wanted.schedule, timezone="UTC")
