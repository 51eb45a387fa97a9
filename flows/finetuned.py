"""Take a fine-tuning event: check it, record the decision, and have the model rebuilt with the new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import JsonValue

from flows import steps
from flows.catalogue import current_catalogue
from flows.flow_runs import named_flow
from flows.names import FINETUNED, REBUILD, model_tag
from flows.report import OVERTAKEN
from flows.task_runs import result_of
from flows.traces import trace_labels
from infra import settings
from infra.errors import EventRefused, SourceError
from infra.s3.bucket import Bucket
from tasks.finetuned.arrivals import Arrival, arrive, decide, pin, refused
from tasks.finetuned.event import Event, changed_by, pinned_source, read_event
from tasks.finetuned.records import TunedWeights, accept
from tasks.models.spec import Model
from tasks.steps.fetch import snapshot_identity
from tasks.steps.retire import is_retired

FINETUNED_TAG = "finetuned"
"""The tag in Prefect of every rebuild that an event starts."""

_NONE: Mapping[str, JsonValue] = {}


@named_flow(FINETUNED, "finetuned {event}")
async def finetuned(payload: dict[str, Any], event: UUID | None = None) -> State[Any]:
    """Rebuild a model with the weights that an event names. An automation starts this flow; people seldom do.

    The flow fails with the reason if the payload is no such event, or names what the model's file does not accept. The
    same weights start nothing a second time, and older ones nothing once newer ones are live. The store keeps every
    event with its decision.

    Args:
        payload: The fields `model`; `source`, or `revision` for another revision of the model's own repository; and
            `recipe` for fields of the recipe to override.
        event: The id of the event. If empty, a new one.
    """
    arrival = await take(str(event or uuid4()), payload)
    # Of an event that is refused with an error, the state is that of the error.
    name = OVERTAKEN if arrival.state == "refused" else arrival.state.capitalize()
    return Completed(name=name, message=arrival.reason)


async def take(id: str, payload: Mapping[str, JsonValue]) -> Arrival:
    """Decide on an event, once. If that is not possible now, the next reconcile tries again.

    Each write may be the last one of this run: whoever takes the event again finds what was written, and goes on.
    Raises EventRefused and SourceError if the event is refused, and other errors if it stays undecided. An event that
    comes too late is refused without an error: nobody has done anything wrong.
    """
    config = settings.load()
    bucket = Bucket.at(config.store)
    arrival = await asyncio.to_thread(arrive, bucket, id, payload)
    if arrival.state != "received":
        get_run_logger().info("event %s was decided before: %s", id, arrival.state)
        return arrival
    catalogue = await current_catalogue(config)
    try:
        asked = read_event(payload)
        catalogue.require_readable(asked.model)
        await asyncio.to_thread(_require_not_retired, bucket, asked.model)
        brought = await _brought(bucket, arrival, asked, catalogue.models)
        first = await asyncio.to_thread(accept, bucket, brought)
    except (EventRefused, SourceError) as error:
        arrival = await asyncio.to_thread(decide, bucket, refused(arrival, error))
        if error.code != "event-overtaken":
            raise
        get_run_logger().warning("event %s comes too late: %s", id, error)
        return arrival
    about = {"model": brought.model, "revision": brought.revision}
    if first.event != id:
        reason = f"event {first.event} brought the same weights on {first.accepted:%Y-%m-%d %H:%M:%S} UTC"
        arrival = arrival.model_copy(update={**about, "state": "duplicate", "reason": reason})
    else:
        run = await rebuild_with(first)
        reason = f"{brought.model} is rebuilt with {brought.source}"
        arrival = arrival.model_copy(update={**about, "state": "accepted", "reason": reason, "flow_run": run})
    get_run_logger().info("event %s: %s", id, arrival.reason)
    return await asyncio.to_thread(decide, bucket, arrival)


def _require_not_retired(bucket: Bucket, model: str) -> None:
    if is_retired(bucket, model):
        raise EventRefused(
            f"{model} is retired, and no event brings it back",
            hint=f"`enginehouse rebuild {model}` does; then send the event again",
            code="model-retired",
        )


async def _brought(bucket: Bucket, arrival: Arrival, event: Event, models: Mapping[str, Model]) -> TunedWeights:
    """The weights that an event brings: those that its source had when it was first looked at.

    Raises SourceError, and EventRefused: `event-overtaken` if the source, or the branch that they were pushed to, has
    others by now.
    """
    changed, asked = changed_by(event, models)
    moved = event.moved
    model, weights = await result_of(steps.resolve, changed, moved or arrival.pinned or asked)
    if moved is not None and pinned_source(moved, weights.tuned.pin) != asked:
        raise EventRefused(f"{moved} is no longer {asked}", code="event-overtaken")
    source, revision = pinned_source(asked, weights.tuned.pin), snapshot_identity(weights.tuned).digest
    # A branch moves, and a prefix is written over. Whatever comes then has an event and a number of its own.
    arrival = await asyncio.to_thread(pin, bucket, arrival, source, revision)
    if arrival.pinned not in ("", source):
        return await _brought(bucket, arrival, event, models)
    if arrival.revision != revision:
        raise EventRefused(f"{source} has other weights than when event {arrival.id} came", code="event-overtaken")
    brought = TunedWeights(
        model=model.name,
        revision=revision,
        asked=asked,
        source=source,
        adapter=weights.adapter is not None,
        recipe=event.options,
        file_source=models[model.name].origin,
        event=arrival.id,
        order=arrival.order,
        series=event.series or "",
        version=event.version or 0,
        traceparent=event.traceparent or "",
    )
    # An event without a number came before there were numbers, and has its place by the clock, as all had then.
    return brought if arrival.order else brought.model_copy(update={"accepted": arrival.received})


async def rebuild_with(weights: TunedWeights, again: str = "") -> str:
    """Start a rebuild that takes these weights, or newer ones if there are when it begins. Returns the run's id.

    There is one run for these weights, and one more for each value of `again`.
    """
    key = f"finetuned:{weights.model}:{weights.revision}"
    again_key = f"{key}:{again}" if again else key
    return await start_rebuild(weights.model, again_key, f"event:{weights.event}", traceparent=weights.traceparent)


async def start_rebuild(
    model: str, key: str, *tags: str, parameters: Mapping[str, JsonValue] = _NONE, traceparent: str = ""
) -> str:
    """Start a rebuild, once for `key`; it goes on with the trace of `traceparent`. Returns the run's id.

    `parameters` are those beside the model.
    """
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(REBUILD.deployment)
        run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={**parameters, "model": model},
            name=f"rebuild {model}",
            tags=[FINETUNED_TAG, model_tag(model), *tags],
            idempotency_key=key,
            labels={**trace_labels(traceparent)},
        )
    return str(run.id)
