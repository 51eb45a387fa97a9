"""Which lost runs are started again, and which builds nobody waits for: a server of which only the lists are real."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import NAMESPACE_URL, uuid4, uuid5

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Completed, Crashed, Running

from flows import lost_runs
from flows.build_waiters import awaited_builds
from flows.lost_runs import AGAIN_TAG, cancel_orphans, due_again, orphans, start_again
from flows.run_filters import PAGE
from tasks.watch.waves import WATCH_TAG


def run(*tags: str, minutes: float = 60, state: Any = None) -> FlowRun:
    """A run that ended, or began, so many minutes ago."""
    then = datetime.now(UTC) - timedelta(minutes=minutes)
    about = {"flow_id": uuid4(), "tags": list(tags), "created": then, "end_time": then}
    return FlowRun.model_validate({**about, "state": state or Running()})


def test_a_rebuild_is_started_again_once() -> None:
    lost = run("model:x")
    others = [run(AGAIN_TAG), run(WATCH_TAG), run(minutes=0.1)]
    assert due_again([lost, *others], ()) == [lost]
    assert due_again([lost], {f"again:{lost.id}"}) == []


def test_builds_without_a_parent_are_found_unless_somebody_waits_for_them() -> None:
    build = run("model:tiny")

    def found(parent: FlowRun | None, *awaited: str) -> bool:
        return orphans([build], {} if parent is None else {build.id: parent}, awaited, 120) == [build]

    assert (
        found(None) and found(run(state=Crashed())) and found(run(state=Cancelled())) and found(run(state=Completed()))
    )
    assert found(None, "other") and not found(None, "tiny")
    assert not found(run(state=Running()))
    # A rebuild of another model may wait for the same build.
    assert found(None, *awaited_builds([run("model:other", f"awaits:{uuid4()}")]))
    assert not found(None, *awaited_builds([run("model:other", f"awaits:{build.id}")]))
    # Its parent has only now ended, and whoever is started in its place comes soon.
    assert not found(run(minutes=1, state=Crashed()))


@dataclass
class Lists:
    """The lists of a Prefect server, as it gives them: a page at most, and without `sort` in any order."""

    runs: list[FlowRun] = field(default_factory=list[FlowRun])
    tasks: list[TaskRun] = field(default_factory=list[TaskRun])
    started: list[str] = field(default_factory=list[str])
    cancelled: list[Any] = field(default_factory=list[Any])

    async def read_deployment_by_name(self, name: str) -> Any:
        return SimpleNamespace(id=uuid5(NAMESPACE_URL, name))

    async def read_flow_runs(
        self,
        *,
        flow_run_filter: FlowRunFilter,
        flow_filter: Any = None,
        sort: FlowRunSort | None = None,
        limit: int,
        offset: int = 0,
    ) -> list[FlowRun]:
        assert limit <= PAGE
        wanted, found = flow_run_filter, self.runs
        if wanted.state is not None and wanted.state.type is not None:
            found = [run for run in found if run.state is not None and run.state.type in (wanted.state.type.any_ or ())]
        if wanted.deployment_id is not None:
            found = [run for run in found if run.deployment_id in (wanted.deployment_id.any_ or ())]
        if wanted.idempotency_key is not None:
            found = [run for run in found if run.idempotency_key in (wanted.idempotency_key.any_ or ())]
        if wanted.id is not None:
            found = [run for run in found if run.id in (wanted.id.any_ or ())]
        if flow_filter is not None:
            found = [run for run in found if run.name in flow_filter.name.any_]
        ordered = sorted(found, key=lambda run: run.id) if sort else random.sample(found, len(found))
        return ordered[offset : offset + limit]

    async def read_task_runs(self, *, task_run_filter: TaskRunFilter, limit: int) -> list[TaskRun]:
        assert limit <= PAGE and task_run_filter.id is not None
        return [task for task in self.tasks if task.id in (task_run_filter.id.any_ or ())][:limit]

    async def create_flow_run_from_deployment(self, deployment: Any, *, idempotency_key: str, **_: Any) -> FlowRun:
        self.started.append(idempotency_key)
        return run()

    async def set_flow_run_state(self, id: Any, state: State[Any], force: bool) -> None:
        self.cancelled.append(id)


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Lists:
    monkeypatch.setattr(lost_runs, "get_run_logger", lambda: logging.getLogger("test"))
    return Lists()


def test_more_crashed_runs_than_a_page_are_all_started_again_and_each_once(lists: Lists) -> None:
    of = [uuid5(NAMESPACE_URL, name) for name in ("rebuild/rebuild", "finetuned/finetuned", "gc/gc")]
    runs = [run(state=Crashed()) for _ in range(3 * PAGE + 90)]
    all_of_them = [each.model_copy(update={"deployment_id": of[n % 3]}) for n, each in enumerate(runs)]
    crashed = [each for each in all_of_them if each.deployment_id != of[2]]
    again = [run(AGAIN_TAG).model_copy(update={"idempotency_key": f"again:{lost.id}"}) for lost in crashed[:-7]]
    lists.runs = [*all_of_them, *again]
    asyncio.run(start_again(cast(PrefectClient, lists)))
    assert sorted(lists.started) == sorted(f"again:{lost.id}" for lost in crashed[-7:])


def test_more_builds_than_a_page_are_all_looked_at(lists: Lists) -> None:
    for number in range(2 * PAGE + 20):
        parent = run(state=Crashed() if number % 2 else Running()).model_copy(update={"name": "rollback"})
        task = TaskRun.model_validate({"flow_run_id": parent.id, "task_key": "build", "dynamic_key": "0"})
        build = run(f"model:m{number}").model_copy(update={"name": "build_engine", "parent_task_run_id": task.id})
        lists.runs += [parent, build]
        lists.tasks.append(task)
    asyncio.run(cancel_orphans(cast(PrefectClient, lists)))
    orphaned = {build.id for build in lists.runs if build.name == "build_engine" and int(build.tags[0][7:]) % 2}
    assert set(lists.cancelled) == orphaned and len(lists.cancelled) == PAGE + 10
