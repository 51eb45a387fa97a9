"""Look for what was missed: lost runs, candidates of runs that died, events without a decision, moved hub branches."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import JsonValue

from flows.finetuned import take
from flows.lost_runs import cancel_orphans, crash_the_dead, start_again
from flows.names import FLOWS, RECONCILE
from flows.patience import RECONCILED_HEARTBEATS
from infra import settings
from infra.errors import EnginehouseError
from infra.s3.bucket import Bucket
from tasks.finetuned.event import Event
from tasks.finetuned.moved_branches import moved
from tasks.finetuned.records import undecided
from tasks.models.catalogue import load_catalogue
from tasks.steps.abandoned import give_up_abandoned

_WATCHED = [flow.name for flow in FLOWS if flow is not RECONCILE]


@flow(name="reconcile", flow_run_name="reconcile", persist_result=False)
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
    for ended in await asyncio.to_thread(give_up_abandoned, bucket, str(flow_run.id), config.lease_seconds):
        get_run_logger().warning("%s", ended)
    for arrival in await asyncio.to_thread(lambda: list(undecided(bucket, undecided_seconds))):
        await _take(arrival.id, arrival.said)
    models = await asyncio.to_thread(load_catalogue, config.catalogue)
    for name, branch in (await asyncio.to_thread(moved, bucket, models.values())).items():
        event = Event(model=name, revision=branch, sender="reconcile")
        await _take(str(uuid4()), event.model_dump(mode="json", exclude_none=True))


async def _take(event: str, payload: dict[str, JsonValue]) -> None:
    """Decide on an event. An error concerns this event alone: it is logged."""
    try:
        await take(event, payload)
    except EnginehouseError as error:
        get_run_logger().warning("event %s: %s", event, error)
