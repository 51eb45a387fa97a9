"""One run at a time rolls a model out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from prefect.runtime import flow_run

from infra import settings
from infra.s3.bucket import Bucket
from tasks.steps import turn as turn_step


@asynccontextmanager
async def turn(target: str, model: str) -> AsyncGenerator[None]:
    """Wait for the turn of this flow run, and have it while the block runs. See `tasks.steps.turn`."""
    config = settings.load()
    lease = turn_step.turn(Bucket.at(config.store), target, model, str(flow_run.id), config.lease_seconds)
    await asyncio.to_thread(lease.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(lease.__exit__, None, None, None)
