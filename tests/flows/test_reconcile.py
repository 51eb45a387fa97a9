"""Which lost runs are started again, and which builds nobody waits for: without servers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Running

from flows.build_waiters import awaited_builds
from flows.lost_runs import AGAIN_TAG, due_again, orphans
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
