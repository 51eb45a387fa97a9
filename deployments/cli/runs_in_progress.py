"""The runs that a Prefect server has in progress, by its API: importing Prefect takes longer than all the rest."""

from __future__ import annotations

import os

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from deployments.cli.prefect_client import client
from flows.names import WORK_ON_A_MODEL
from tasks.explain.fleet_view import Run

PATIENCE_SECONDS = 1.0
"""Who looks at the fleet waits no longer for this."""
_MOST = 200
"""The most that Prefect's API answers at once. Nobody reads more in progress."""
_FLOWS = tuple(flow.name for flow in WORK_ON_A_MODEL)
_STATES = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")


class _FlowRun(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    state_name: str | None = None
    estimated_run_time: float = 0


_PAGE = TypeAdapter(list[_FlowRun])


def runs_in_progress(patience_s: float = PATIENCE_SECONDS) -> tuple[Run, ...] | None:
    """The runs that work on a model; None if no server is known, or it does not answer in time or lets nobody in."""
    api = os.environ.get("PREFECT_API_URL", "")
    if not api:
        return None
    found: list[Run] = []
    try:
        with client(api, patience_s) as asked:
            for flow in _FLOWS:
                wanted = {
                    "flows": {"name": {"any_": [flow]}},
                    "flow_runs": {"state": {"type": {"any_": [*_STATES]}}},
                    "limit": _MOST,
                }
                answer = asked.post("/flow_runs/filter", json=wanted)
                answer.raise_for_status()
                found += [_run(flow, each) for each in _PAGE.validate_json(answer.content)]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValidationError):
        return None
    return tuple(found)


def _run(flow: str, run: _FlowRun) -> Run:
    return Run(run.id, flow, str(run.parameters.get("model", "")), run.state_name or "", run.estimated_run_time)
