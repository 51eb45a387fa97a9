"""Look for what was missed: lost runs, candidates, watches, waves, decisions, events, weights, MLflow's aliases."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from uuid import NAMESPACE_URL, uuid5

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.runtime import flow_run
from pydantic import JsonValue, ValidationError

from flows.approve import follow
from flows.catalogue import current_catalogue
from flows.finetuned import rebuild_with, start_rebuild, take
from flows.flow_runs import named_flow
from flows.lost_runs import being_rebuilt, cancel_orphans, crash_the_dead, has_crashed, start_again
from flows.names import FLOWS, RECONCILE
from flows.patience import RECONCILED_HEARTBEATS
from flows.registry import register
from infra import settings
from infra.errors import EnginehouseError
from infra.s3.bucket import Bucket
from tasks.finetuned.arrivals import undecided
from tasks.finetuned.event import Event
from tasks.finetuned.moved_branches import moved
from tasks.finetuned.records import waiting
from tasks.models.spec import Model
from tasks.sources.resolved import Access
from tasks.steps.abandoned import give_up_abandoned
from tasks.steps.approve import follow_up
from tasks.steps.retire import is_retired
from tasks.steps.unwatched import look_at_unwatched
from tasks.steps.waves import unfinished
from tasks.targets.target import Target

_WATCHED = [flow.name for flow in FLOWS if flow is not RECONCILE]


@named_flow(RECONCILE, "reconcile", fleet="shown again")
async def reconcile(undecided_seconds: float = 300) -> None:
    """Start crashed rebuilds again, end what nobody waits for, and decide on events that were missed.

    Runs by its schedule, and when a rebuild has crashed.

    Args:
        undecided_seconds: Decide on events that came at least so many seconds ago. Younger ones are left to the
            automation, which usually decides within seconds.
    """
    config = settings.load()
    async with get_client() as client:
        await crash_the_dead(client, _WATCHED, RECONCILED_HEARTBEATS * config.heartbeat_seconds)
        await start_again(client)
        await cancel_orphans(client)
    bucket = Bucket.at(config.store)
    await follow_decisions(bucket)
    for ended in await asyncio.to_thread(give_up_abandoned, bucket, str(flow_run.id), config.lease_seconds):
        get_run_logger().warning("%s", ended)
    for line in await asyncio.to_thread(look_at_unwatched, bucket, str(flow_run.id), config.lease_seconds):
        get_run_logger().warning("%s", line)
    await decide_the_undecided(bucket, undecided_seconds)
    async with get_client() as client:
        going = await being_rebuilt(client)
        await end_waves(client, bucket, going)
    catalogue = await current_catalogue(config)
    for line in catalogue.unread:
        get_run_logger().warning("%s", line)
    for model in catalogue.models.values():
        try:
            for target in model.targets:
                await register(Target(bucket, target), model)
            await _take_moved(bucket, model)
            if model.name not in going:
                await rebuild_what_waits(bucket, model)
        except (EnginehouseError, ValidationError) as error:  # a record of this model, which concerns no other
            get_run_logger().warning("%s: %s", model.name, error)


async def follow_decisions(bucket: Bucket) -> None:
    """Promote what people have approved while no server was up, and end candidates that were rejected or timed out."""
    for found in await asyncio.to_thread(lambda: list(follow_up(bucket))):
        if isinstance(found, str):
            get_run_logger().warning("%s", found)
        else:
            await follow(found)


async def end_waves(client: PrefectClient, bucket: Bucket, going: Container[str]) -> None:
    """Give back what refused rollouts had moved when their runs died, and go on with those whose run has crashed.

    Once from each wave, and not with one that a person has cancelled, or that has failed and said why.
    """
    for found in await asyncio.to_thread(lambda: list(unfinished(bucket))):
        if isinstance(found, str):
            get_run_logger().warning("%s", found)
        elif found.model in going:
            continue
        elif found.waves.state == "returning":
            for line in await asyncio.to_thread(found.give_back, str(flow_run.id)):
                get_run_logger().warning("%s: %s", found.model, line)
        elif await has_crashed(client, found.waves.flow_run):
            run = await start_rebuild(found.model, found.key, parameters=found.waves.parameters)
            get_run_logger().warning("%s was rolled out in part: run %s goes on", found.model, run)


async def decide_the_undecided(bucket: Bucket, older_than_seconds: float) -> None:
    """Decide on the events that came so long ago and were left without a decision, in the order in which they came."""
    warn = get_run_logger().warning
    for arrival in await asyncio.to_thread(lambda: list(undecided(bucket, older_than_seconds, warn))):
        await _take(arrival.id, arrival.said)


async def rebuild_what_waits(bucket: Bucket, model: Model) -> None:
    """Have a model rebuilt whose accepted weights wait and that nobody rebuilds: newer ones were refused before them.

    What is known of a model's weights has one such rebuild, so one that fails does not come again. A model that was
    retired is brought back by a person, and nobody else.
    """
    found = await asyncio.to_thread(waiting, bucket, model)
    if found is not None and not await asyncio.to_thread(is_retired, bucket, model.name):
        weights, known = found
        await rebuild_with(weights, again=known)


async def _take_moved(bucket: Bucket, model: Model) -> None:
    """One event for the weights that a branch has now, or a rebuild for those that an adapter is merged into.

    Only of a model that is public somewhere, which no retired one is.
    """
    access = Access(s3=bucket.client, mlflow=settings.load().mlflow)
    for found in await asyncio.to_thread(lambda: list(moved(bucket, [model], access))):
        key = f"moved:{found.model}:{found.snapshot}"
        if found.tuned:
            event = Event(model=found.model, source=found.address, sender="reconcile")
            await _take(str(uuid5(NAMESPACE_URL, key)), event.model_dump(mode="json", exclude_none=True))
        else:
            await start_rebuild(found.model, key)


async def _take(event: str, payload: dict[str, JsonValue]) -> None:
    """Decide on an event. An error concerns this event alone: it is logged."""
    try:
        await take(event, payload)
    except (EnginehouseError, ValidationError) as error:
        get_run_logger().warning("event %s: %s", event, error)
