"""Collect garbage on a schedule: the same as `enginehouse gc`."""

from __future__ import annotations

import asyncio

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.failure import without_traceback
from flows.flow_runs import named_flow
from flows.names import COLLECT_GARBAGE
from flows.task_runs import result_of
from infra import settings
from infra.s3.bucket import Bucket
from tasks.garbage.collect import GRACE_DAYS, collect, survey, survey_lines


@named_flow(COLLECT_GARBAGE, "collect garbage")
async def collect_garbage(grace_days: float = GRACE_DAYS, dry_run: bool = False) -> int:
    """Delete the files of artifacts that no live, previous or candidate release, pin or running build needs.

    Manifests stay.

    Args:
        grace_days: Keep what was made or used within so many days.
        dry_run: Only log what would be deleted, and why.
    """
    return await result_of(_collect, grace_days, dry_run)


@task(name="collect", cache_policy=NO_CACHE, persist_result=False)
@without_traceback
async def _collect(grace_days: float, dry_run: bool) -> int:
    """Returns how many bytes were deleted, or would be in a dry run."""
    config, log = settings.load(), get_run_logger()
    bucket = Bucket.at(config.store)
    found = await asyncio.to_thread(survey, bucket, grace_days * 86400)
    for line in survey_lines(found):
        log.info("%s", line)
    if dry_run:
        return found.size
    kept = await asyncio.to_thread(collect, bucket, found, str(flow_run.id or ""), config.lease_seconds)
    for item in kept:
        log.info("kept after all, because something used or replaced it meanwhile: %s", item.name)
    return found.size - sum(item.size for item in kept)
