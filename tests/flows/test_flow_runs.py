"""The states and tags of runs, without a server. `tests/deployments/prefect_server` sees them on one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flows.failure import error_of, failed, reason_of, without_traceback
from flows.flow_runs import tags_of
from infra.errors import EnginehouseError, GateRefused, GateUndecided, StepFailed


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (GateRefused("no", hint="look"), "Refused"),
        (GateUndecided("who knows"), "Undecided"),
        (StepFailed("no"), "Failed"),
    ],
)
def test_a_state_is_named_by_what_a_gate_said(error: EnginehouseError, name: str) -> None:
    state = failed(error)
    assert state.is_failed() and state.name == name and reason_of(state) == str(error)
    told = error_of(state, "the build of tiny")
    assert (told.code, told.hint) == (error.code, error.hint) and error.message in told.message


def test_without_a_run_every_error_is_raised() -> None:
    @without_traceback
    async def refuses() -> None:
        raise GateRefused("no")

    with pytest.raises(GateRefused):
        asyncio.run(refuses())


@pytest.mark.parametrize(
    ("parameters", "tags"),
    [
        ({"model": "tiny", "targets": ("east", "west")}, ["model:tiny", "target:east", "target:west"]),
        ({"model": "tiny", "target": "east", "to": 7}, ["model:tiny", "target:east"]),
        ({"model": "tiny", "target": None, "instead_of": None}, ["model:tiny"]),
        ({"model": {"name": "tiny"}, "engine": "e"}, ["model:tiny"]),
        ({"payload": {"model": "tiny", "source": "s3://b/k"}, "event": None}, ["model:tiny"]),
        ({"payload": {"model": 7}}, []),
        ({"grace_days": 7.0, "dry_run": False}, []),
    ],
)
def test_a_run_has_the_tags_of_what_it_is_asked_for(parameters: dict[str, Any], tags: list[str]) -> None:
    assert list(tags_of(parameters)) == tags
