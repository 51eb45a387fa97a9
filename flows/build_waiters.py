"""Who waits for a build: rebuilds that started it or attached to it, each by a tag of its own run.

A run writes only its own tags, so none can be lost. A build that nobody waits for any more is cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun
from prefect.runtime import flow_run
from prefect.states import Cancelling

from flows.names import AWAITS
from flows.run_filters import NOT_ENDED


async def wait_for(client: PrefectClient, build: UUID) -> None:
    """Note on this run that it waits for a build."""
    run = await client.read_flow_run(UUID(str(flow_run.id)))
    await client.update_flow_run(run.id, tags=[*run.tags, f"{AWAITS}{build}"])


def awaited_builds(runs: Iterable[FlowRun]) -> set[str]:
    """The ids of the builds that these runs wait for."""
    return {tag.removeprefix(AWAITS) for run in runs for tag in run.tags if tag.startswith(AWAITS)}


async def let_go(client: PrefectClient, build: UUID) -> bool:
    """Cancel a build that this run waits for no more, unless another run does. Returns whether it was cancelled.

    A run that attaches just now will find the build cancelled, and start another one.
    """
    waiting = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=[f"{AWAITS}{build}"]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(NOT_ENDED))),
        ),
        limit=2,
    )
    if any(str(run.id) != str(flow_run.id) for run in waiting):
        return False
    await client.set_flow_run_state(build, Cancelling(message="nobody waits for it any more"))
    return True


async def is_ours(client: PrefectClient, build: FlowRun) -> bool:
    """Whether this run started the build. Of runs that ask with one idempotency key at once, one did."""
    if flow_run.id is None or build.parent_task_run_id is None:
        return flow_run.id is None
    parent = await client.read_task_run(build.parent_task_run_id)
    return str(parent.flow_run_id) == str(flow_run.id)
