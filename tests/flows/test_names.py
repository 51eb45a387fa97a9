"""The lists of flows and steps are whole: what is not in them has no deployment, no heartbeat that anybody watches, or
no lines in `enginehouse logs --step`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from prefect import Flow, Task

import flows
from deployments.cli.rebuild_runs import RUN_NAME
from flows import steps
from flows.names import FLOWS, STEPS, step_of
from flows.rebuild import rebuild


def test_every_flow_is_in_the_list() -> None:
    found: set[tuple[str, str, str]] = set()
    for module in iter_modules(flows.__path__, "flows."):
        for function, value in vars(import_module(module.name)).items():
            if isinstance(value, Flow) and value.fn.__module__ == module.name:
                found.add((module.name, function, value.name))
    assert found == {(flow.module, flow.name, flow.name) for flow in FLOWS}


def test_every_step_is_in_the_list_and_found_by_what_its_runs_are_called() -> None:
    tasks: list[Task[Any, Any]] = [value for value in vars(steps).values() if isinstance(value, Task)]
    assert {task.name for task in tasks} == set(STEPS)
    for task in tasks:
        template = task.task_run_name
        assert isinstance(template, str) and step_of(template) == task.name
        assert step_of(f"{task.name}-1f0") == task.name  # until the run begins
    assert step_of("roll back tiny on local") == step_of("watching") == step_of("") == ""


def test_a_rebuild_is_found_by_its_name() -> None:
    assert rebuild.flow_run_name == RUN_NAME
