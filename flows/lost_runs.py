"""Runs that were lost: their worker or process died, or their parent is gone.

The automation `lost-runs` of the server marks a run without heartbeats as Crashed. This module finds what the server
cannot see, and does what follows. It leaves other people's flows on the same server alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed

from flows.build_waiters import awaited_builds
from flows.names import BUILD_ENGINE, FINETUNED, REBUILD, FlowName
from flows.patience import SETTLED_SECONDS, STARTING_SECONDS
from flows.run_filters import NOT_ENDED, PAGE, pages, read_all
from tasks.watch.waves import WATCH_TAG

AGAIN_TAG = "again"
"""The tag in Prefect of a run that replaces one that crashed. It is not replaced in turn."""

_REMEMBERED = timedelta(days=1)


async def crash_the_dead(client: PrefectClient, flows: Iterable[str], silent_seconds: float) -> None:
    """Set runs of `flows` to Crashed that never began, or that fell silent while the server was down.

    A run has fallen silent if it is Running for `silent_seconds`, and sent no heartbeat within them.
    """
    for run in await _of_flows(client, flows, [StateType.PENDING, StateType.RUNNING]):
        since = _seconds_since(run.state.timestamp if run.state else run.created)
        if run.state_type is StateType.PENDING:
            if since > STARTING_SECONDS:
                await _set(client, run, Crashed(message="it did not begin: its worker is gone"))
        elif since > silent_seconds and not await _sent_heartbeat(client, run, silent_seconds):
            await _set(client, run, Crashed(message="it sends no heartbeats: its worker and its process are gone"))


async def start_again(client: PrefectClient) -> None:
    """Start crashed rebuilds and decisions on events again, each once. The release watch has its own way.

    Who decides on an event may have died before it was in the store, and then Prefect alone knows of it.
    """
    for flow in (REBUILD, FINETUNED):
        await _start_again(client, flow)


async def _start_again(client: PrefectClient, flow: FlowName) -> None:
    deployment = await client.read_deployment_by_name(flow.deployment)
    crashed = await read_all(
        client,
        FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
            end_time=FlowRunFilterEndTime.model_validate({"after_": datetime.now(UTC) - _REMEMBERED}),
        ),
    )
    started: set[str | None] = set()
    for keys in pages([_key(run) for run in crashed]):
        with_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=list(keys)))
        started |= {run.idempotency_key for run in await read_all(client, with_key)}
    for lost in due_again(crashed, started):
        again = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters=lost.parameters,
            name=lost.name,
            tags=[*lost.tags, AGAIN_TAG],
            idempotency_key=_key(lost),
        )
        get_run_logger().warning("%s crashed, and is started again: %s", lost.name, again.id)


def due_again(crashed: Iterable[FlowRun], started: Container[str | None]) -> list[FlowRun]:
    """The crashed runs to start again now. `started` are the idempotency keys of runs that were started before."""
    return [
        run
        for run in crashed
        if _key(run) not in started
        and {AGAIN_TAG, WATCH_TAG}.isdisjoint(run.tags)
        and _seconds_since(run.end_time) >= SETTLED_SECONDS
    ]


def _key(lost: FlowRun) -> str:
    return f"again:{lost.id}"


async def cancel_orphans(client: PrefectClient, after_seconds: float = 120) -> None:
    """Cancel builds whose parent ended more than `after_seconds` ago: a rebuild in its place has begun by then.

    A build stays if a rebuild waits for it, or one of the same model is on its way to it.
    """
    builds = [run for run in await _of_flows(client, [BUILD_ENGINE.name], NOT_ENDED) if run.parent_task_run_id]
    if not builds:
        return
    rebuilds = await _of_flows(client, [REBUILD.name], NOT_ENDED)
    awaited = _models(rebuilds) | awaited_builds(rebuilds)
    for run in orphans(builds, await _parents(client, builds), awaited, after_seconds):
        # Nobody would end a run that no worker has taken.
        begun = run.state_type in (StateType.RUNNING, StateType.PENDING)
        message = "nobody waits for it: its parent is gone"
        await _set(client, run, Cancelling(message=message) if begun else Cancelled(message=message))


async def being_rebuilt(client: PrefectClient) -> frozenset[str]:
    """The models of rebuilds that have not ended."""
    return _models(await _of_flows(client, [REBUILD.name], NOT_ENDED))


async def has_crashed(client: PrefectClient, run: str) -> bool:
    """Whether a flow run, by its id, has crashed. One that the server does not know any more has not."""
    try:
        found = await client.read_flow_run(UUID(run))
    except (ValueError, ObjectNotFound):
        return False
    return found.state_type is StateType.CRASHED


def _models(rebuilds: Iterable[FlowRun]) -> frozenset[str]:
    return frozenset(str(run.parameters.get("model")) for run in rebuilds)


def orphans(
    builds: Iterable[FlowRun], parents: Mapping[UUID, FlowRun], awaited: Container[str], after_seconds: float
) -> list[FlowRun]:
    """The builds whose parent has ended or was deleted.

    `parents` are by the build's id; `awaited` are models, and ids of builds, that some rebuild waits for.
    """
    found: list[FlowRun] = []
    for run in builds:
        parent = parents.get(run.id)
        gone = parent is None or (parent.state is not None and parent.state.is_final())
        ended = run.created if parent is None else parent.end_time
        model = next((tag.removeprefix("model:") for tag in run.tags if tag.startswith("model:")), "")
        if gone and _seconds_since(ended) > after_seconds and model not in awaited and str(run.id) not in awaited:
            found.append(run)
    return found


async def _of_flows(client: PrefectClient, flows: Iterable[str], states: Iterable[StateType]) -> list[FlowRun]:
    in_state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))))
    return await read_all(client, in_state, FlowFilter(name=FlowFilterName(any_=list(flows))))


async def _parents(client: PrefectClient, runs: list[FlowRun]) -> dict[UUID, FlowRun]:
    """The flow runs that started `runs`, by the id of the run that they started."""
    of_run = {run.id: run.parent_task_run_id for run in runs if run.parent_task_run_id is not None}
    of_task: dict[UUID, UUID] = {}
    for ids in pages(list(of_run.values())):
        wanted = TaskRunFilter(id=TaskRunFilterId(any_=list(ids)))
        tasks = await client.read_task_runs(task_run_filter=wanted, limit=PAGE)
        of_task |= {task.id: task.flow_run_id for task in tasks if task.flow_run_id is not None}
    by_id: dict[UUID, FlowRun] = {}
    for ids in pages(list(of_task.values())):
        found = await read_all(client, FlowRunFilter(id=FlowRunFilterId(any_=list(ids))))
        by_id |= {run.id: run for run in found}
    return {run: by_id[of_task[task]] for run, task in of_run.items() if of_task.get(task) in by_id}


async def _sent_heartbeat(client: PrefectClient, run: FlowRun, seconds: float) -> bool:
    wanted = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
        "occurred": {"since": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()},
    }
    answer = await client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    return bool(answer.json()["events"])


async def _set(client: PrefectClient, run: FlowRun, state: State[Any]) -> None:
    get_run_logger().warning("%s (%s) is set to %s: %s", run.name, run.id, state.name, state.message)
    await client.set_flow_run_state(run.id, state, force=state.is_crashed())


def _seconds_since(time: datetime | None) -> float:
    return 0.0 if time is None else (datetime.now(UTC) - time).total_seconds()
