"""Look for what was missed: runs that the machinery lost, events that nobody decided on, branches that moved."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from pydantic import JsonValue

from flows.finetuned import take
from flows.lost_runs import cancel_orphans, crash_the_dead, start_again
from infra import settings
from infra.errors import EnginehouseError, SourceError, SourceUnavailable
from infra.s3 import Bucket
from infra.settings import Settings
from tasks.artifact import ArtifactRef
from tasks.catalogue import load_catalogue
from tasks.event_records import undecided
from tasks.events import Event
from tasks.fetch import snapshot_identity
from tasks.records import Target
from tasks.source_uri import HubUri, parse
from tasks.sources import resolve
from tasks.spec import Model

_FLOWS = ("build_engine", "collect_garbage", "finetuned", "rebuild", "rollback", "watch_releases")
# Less than an automation and a worker take to decide on an event, in seconds.
_UNDECIDED_SECONDS = 300.0


@flow(name="reconcile", flow_run_name="reconcile", persist_result=False)
async def reconcile() -> None:
    """Start again what crashed, end what nobody waits for, and take the events that were missed.

    Runs by its schedule, and when a rebuild has crashed.
    """
    here = settings.load()
    async with get_client() as client:
        # Later than the server's own automation, which counts three.
        await crash_the_dead(client, _FLOWS, 4 * here.heartbeat_seconds)
        await start_again(client)
        await cancel_orphans(client)
    bucket = Bucket.at(here.store)
    for arrival in await asyncio.to_thread(lambda: list(undecided(bucket, _UNDECIDED_SECONDS))):
        await _take(arrival.id, arrival.said)
    for name, branch in (await asyncio.to_thread(moved, here, bucket)).items():
        event = Event(model=name, revision=branch, sender="reconcile")
        await _take(str(uuid4()), event.model_dump(mode="json", exclude_none=True))


async def _take(event: str, said: dict[str, JsonValue]) -> None:
    """Decide on an event; what keeps it from being decided on, or refuses it, keeps no other from it."""
    try:
        await take(event, said)
    except EnginehouseError as error:
        get_run_logger().warning("event %s: %s", event, error)


def moved(here: Settings, bucket: Bucket) -> dict[str, str]:
    """Released models whose file follows a branch of the hub that was never built as it is now, with the branch."""
    found: dict[str, str] = {}
    for model in load_catalogue(here.catalogue).values():
        uri = parse(model.source.uri)
        if isinstance(uri, HubUri) and not uri.is_commit and _is_released(bucket, model) and _is_new(bucket, model):
            found[model.name] = uri.revision
    return found


def _is_released(bucket: Bucket, model: Model) -> bool:
    return any(Target(bucket, name).current(model.name)[0].public is not None for name in model.targets)


def _is_new(bucket: Bucket, model: Model) -> bool:
    try:
        identity = snapshot_identity(resolve(model.source)).digest
    except (SourceError, SourceUnavailable):
        return False  # its next rebuild tells
    # Manifests outlive their files.
    return bucket.get(f"{ArtifactRef('snapshot', model.name, identity).folder}manifest.json") is None
