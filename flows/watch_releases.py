"""Look for new versions of TensorRT-LLM, and rebuild the models whose policy takes them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType

from flows import ui
from flows.catalogue import current_catalogue
from flows.failure import reason_of
from flows.flow_runs import named_flow
from flows.names import REBUILD, WAITING, WATCH_RELEASES, model_tag
from flows.run_filters import NOT_ENDED, PAGE
from flows.task_runs import worth_retrying
from infra import settings
from infra.errors import UsageError
from infra.images import images
from infra.package_index import Published, configured, published
from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.models.spec import Model
from tasks.steps.retire import retired_models
from tasks.trtllm.published import DISTRIBUTION
from tasks.watch.record import WatchRecord, move_record, read_record
from tasks.watch.verdict import Offer, Row, judge, offers, version_in_use
from tasks.watch.waiting import decided
from tasks.watch.waves import WATCH_TAG, RebuildRun, Start, due, next_wave, run_key, settled, tried_again


@dataclass(frozen=True)
class Watched:
    """What a watch found, and the rebuilds that it started; in a dry run, those that it would start."""

    rows: tuple[Row, ...]
    starts: tuple[Start, ...]


@named_flow(WATCH_RELEASES, "watch releases", fleet="shown again")
async def watch_releases(dry_run: bool = False, retry: list[str] | None = None) -> Watched:
    """Ask the package indexes for versions of TensorRT-LLM, and rebuild the models whose policy takes a new one.

    A canary model is rebuilt first, the others when it has passed, a few at a time. This flow waits for none of them.

    Args:
        dry_run: Only report what would be rebuilt.
        retry: Names of models whose rebuild has failed, to try again.
    """
    config = settings.load()
    bucket = Bucket.at(config.store)
    catalogue = await current_catalogue(config)
    for line in catalogue.unread:
        get_run_logger().warning("%s", line)
    if all(model.updates.policy == "pinned" for model in catalogue.models.values()):
        get_run_logger().info("no model follows TensorRT-LLM")
        return Watched((), ())
    offered, (record, _) = await asyncio.gather(_ask(config), asyncio.to_thread(read_record, bucket))
    again = frozenset(retry or ())
    if unknown := sorted(again - record.attempts.keys()):
        raise UsageError(f"no rebuild of {', '.join(unknown)} for a new version has failed")

    async with get_client() as client:
        before = tried_again(record, again)
        table = await asyncio.to_thread(_judged, catalogue.models, catalogue.models, before, offered)
        # A new version brings none of those back that somebody has taken away.
        retired = await asyncio.to_thread(retired_models, bucket, due(table))
        models = {name: model for name, model in catalogue.models.items() if name not in retired}
        table = {name: rows for name, rows in table.items() if name in models}
        left_out, was_due = catalogue.broken.keys() | retired, due(table)
        keys = {run_key(models[name], row, before): models[name] for name, row in was_due.items()}
        runs = await asyncio.to_thread(_as_decided, bucket, keys, await _runs(client, [*keys]))
        now = settled(models, was_due, before, runs, left_out)
        moved = [name for name in was_due if now.followed.get(name) != before.followed.get(name)]
        table |= _judged(models, moved, now, offered)
        due_rows, starts = next_wave(models, due(table), now, runs, config.watch_parallel - await _going(client))
        if starts and not dry_run:
            await _start(client, models, starts)
    rows = tuple(due_rows[name] if row.verdict == "rebuild" else row for name in sorted(table) for row in table[name])
    log = get_run_logger()
    if dry_run:
        log.info("%d rebuilds would start now", len(starts))
    else:
        log.info("%d rebuilds start now", len(starts))
        digest = await _show(rows, now.shown)

        def change(stored: WatchRecord) -> WatchRecord:
            new = settled(models, was_due, tried_again(stored, again), runs, left_out)
            return new.model_copy(update={"shown": digest})

        await asyncio.to_thread(move_record, bucket, change)
    return Watched(rows, tuple(starts))


async def _ask(config: Settings) -> tuple[Offer, ...]:
    known = await asyncio.to_thread(images, config.images)
    return offers(await _published(config.watch_indexes), known, config.watch_avoid)


@task(
    name="ask the indexes",
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def _published(extra: tuple[str, ...]) -> tuple[Published, ...]:
    return await asyncio.to_thread(lambda: published(DISTRIBUTION, configured(extra)))


def _judged(
    models: Mapping[str, Model], names: Iterable[str], record: WatchRecord, offered: tuple[Offer, ...]
) -> dict[str, tuple[Row, ...]]:
    found: dict[str, tuple[Row, ...]] = {}
    for name in names:
        followed = record.followed.get(name)
        current = version_in_use(models[name], followed.version if followed else None)
        found[name] = judge(models[name], current, offered)
    return found


async def _runs(client: PrefectClient, keys: list[str]) -> dict[str, RebuildRun]:
    """The runs with these idempotency keys, by key."""
    if not keys:
        return {}
    wanted = FlowRunFilter(
        idempotency_key=FlowRunFilterIdempotencyKey(any_=keys), tags=FlowRunFilterTags(all_=[WATCH_TAG])
    )
    found: dict[str, RebuildRun] = {}
    offset = 0
    while page := await client.read_flow_runs(flow_run_filter=wanted, limit=PAGE, offset=offset):
        found |= {run.idempotency_key: _run(run) for run in page if run.idempotency_key}
        offset += len(page)
        if len(page) < PAGE:
            break
    return found


def _as_decided(bucket: Bucket, models: Mapping[str, Model], runs: Mapping[str, RebuildRun]) -> dict[str, RebuildRun]:
    """The runs as they count, where some left a candidate to a person. Both mappings are by idempotency key."""
    return {
        key: decided(bucket, models[key].targets, models[key].name, run) if run.state == "waiting" else run
        for key, run in runs.items()
    }


def _run(run: FlowRun) -> RebuildRun:
    state = run.state
    if state is None or not state.is_final():
        return RebuildRun(str(run.id), "going")
    if state.name == WAITING:
        return RebuildRun(str(run.id), "waiting")
    if state.is_completed():
        return RebuildRun(str(run.id), "completed")
    reason = reason_of(state) or f"the run ended as {state.name}"
    return RebuildRun(str(run.id), "crashed" if state.is_crashed() else "failed", reason)


async def _going(client: PrefectClient) -> int:
    """How many rebuilds of any watch have not ended. More than a page of them counts as a page."""
    going = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[WATCH_TAG]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[*NOT_ENDED, StateType.CANCELLING])),
    )
    return len(await client.read_flow_runs(flow_run_filter=going, limit=PAGE))


async def _start(client: PrefectClient, models: Mapping[str, Model], starts: list[Start]) -> None:
    log = get_run_logger()
    deployment = await client.read_deployment_by_name(REBUILD.deployment)
    for start in starts:
        parameters = {"model": start.model, "runtime": start.version}
        run = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters=parameters,
            name=f"rebuild {start.model}",
            tags=[WATCH_TAG, model_tag(start.model), f"tensorrt-llm:{start.version}"],
            idempotency_key=start.key,
        )
        log.info("%s is rebuilt with TensorRT-LLM %s: %s", start.model, start.version, run.id)


async def _show(rows: tuple[Row, ...], shown: str) -> str:
    """Show the table unless it was shown last: `shown` is the digest of that one. Returns the digest of this one."""
    lines = ui.watch_lines(rows)
    digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    if digest != shown:
        await ui.show_watch(lines)
    return digest
