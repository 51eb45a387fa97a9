"""Bring an earlier release of a model back. A promotion moves the public name in the same way."""

from __future__ import annotations

import asyncio
from functools import partial

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.failure import without_traceback
from flows.flow_runs import named_flow
from flows.names import ROLLBACK
from flows.task_runs import result_of
from flows.telling import telling
from infra import settings
from infra.s3.bucket import Bucket
from tasks.steps.promote import RolledBack, roll_back
from tasks.targets.target import Target


@named_flow(ROLLBACK, "roll back {model}", fleet="shown")
async def rollback(
    model: str,
    to: int | None = None,
    target: str | None = None,
    instead_of: int | None = None,
    reason: str = "",
) -> RolledBack:
    """Move the public name of a model back to an earlier release that passed its gates.

    Args:
        model: Name of the model.
        to: Number of the release. If empty, the one that was public before.
        target: Name of the target to roll back on. If empty, the one of the worker that runs this.
        instead_of: Number of the release to go back from. If another one is public by then, nothing is done.
        reason: Why. It is in the record of the move.
    """
    done = await result_of(_roll_back, model, to, target or settings.load().target, instead_of, reason)
    get_run_logger().info("%s answers with release %d, instead of %s", model, done.release, done.instead_of)
    return done


@task(name="rollback", task_run_name="roll back {model} on {target}", cache_policy=NO_CACHE, persist_result=False)
@without_traceback
async def _roll_back(model: str, to: int | None, target: str, instead_of: int | None, reason: str) -> RolledBack:
    back = partial(roll_back, flow_run=str(flow_run.id or ""), reason=reason, say=telling())
    return await asyncio.to_thread(back, Target(Bucket.at(settings.load().store), target), model, to, instead_of)
