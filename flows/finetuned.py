"""Take a fine-tuning event: check it, record the decision, and have the model rebuilt with the new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import JsonValue

from flows import steps
from flows.failure import failed
from flows.names import REBUILD
from infra import settings
from infra.errors import EnginehouseError, EventRefused, SourceError
from infra.s3.bucket import Bucket
from tasks.finetuned.event import changed_by, pinned_source, read_event
from tasks.finetuned.records import Arrival, TunedWeights, arrive, claim, decide, follow, refused
from tasks.models.catalogue import load_catalogue
from tasks.steps.fetch import snapshot_identity

FINETUNED_TAG = "finetuned"
"""The tag in Prefect of every rebuild that an event starts."""


@flow(name="finetuned", flow_run_name="finetuned {event}", persist_result=False)
async def finetuned(payload: dict[str, Any], event: UUID | None = None) -> State[Any]:
    """Rebuild a model with the weights that an event names. An automation starts this flow; people seldom do.

    The flow fails with the reason if the payload is no such event, or names what the model's file does not accept. The
    same weights start nothing a second time. The store keeps every event with its decision.

    Args:
        payload: The fields `model`; `source`, or `revision` for another revision of the model's own repository; and
            `recipe` for fields of the recipe to override.
        event: The id of the event. If empty, a new one.
    """
    try:
        arrival = await take(str(event or uuid4()), payload)
    except EnginehouseError as error:
        return failed(error)
    return Completed(name=arrival.state.capitalize(), message=arrival.reason)


async def take(id: str, payload: Mapping[str, JsonValue]) -> Arrival:
    """Decide on an event, once. If that is not possible now, the next reconcile tries again.

    Raises EventRefused and SourceError if the event is refused, and other errors if it stays undecided.
    """
    config = settings.load()
    bucket = Bucket.at(config.store)
    arrival = await asyncio.to_thread(arrive, bucket, id, payload)
    if arrival.state != "received":
        get_run_logger().info("event %s was decided before: %s", id, arrival.state)
        return arrival
    models = await asyncio.to_thread(load_catalogue, config.catalogue)
    try:
        event = read_event(payload)
        changed, asked = changed_by(event, models)
        model, weights = await steps.resolve(changed, asked)
    except (EventRefused, SourceError) as error:
        await asyncio.to_thread(decide, bucket, refused(arrival, error))
        raise
    brought = TunedWeights(
        model=model.name,
        revision=snapshot_identity(weights.tuned).digest,
        asked=asked,
        source=pinned_source(asked, weights.tuned.pin),
        adapter=weights.adapter is not None,
        recipe=event.options,
        file_source=models[model.name].origin,
        event=id,
    )
    first = await asyncio.to_thread(claim, bucket, brought)
    about = {"model": brought.model, "revision": brought.revision}
    if first.event != id:
        reason = f"event {first.event} brought the same weights on {first.accepted:%Y-%m-%d %H:%M:%S} UTC"
        arrival = arrival.model_copy(update={**about, "state": "duplicate", "reason": reason})
    else:
        await asyncio.to_thread(follow, bucket, first)
        run = await _rebuild(first)
        reason = f"{brought.model} is rebuilt with {brought.source}"
        arrival = arrival.model_copy(update={**about, "state": "accepted", "reason": reason, "flow_run": run})
    get_run_logger().info("event %s: %s", id, arrival.reason)
    return await asyncio.to_thread(decide, bucket, arrival)


async def _rebuild(weights: TunedWeights) -> str:
    """Start the rebuild, once for these weights. It takes the newest, which may be others when it begins."""
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(REBUILD.deployment)
        run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"model": weights.model},
            name=f"rebuild {weights.model}",
            tags=[FINETUNED_TAG, f"event:{weights.event}"],
            idempotency_key=f"finetuned:{weights.model}:{weights.revision}",
        )
    return str(run.id)
