"""The list of flows is whole: what is not in it has no deployment, and no heartbeat that anybody watches."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from prefect import Flow

import flows
from flows.names import FLOWS


def test_every_flow_is_in_the_list() -> None:
    found: set[tuple[str, str, str]] = set()
    for module in iter_modules(flows.__path__, "flows."):
        for function, value in vars(import_module(module.name)).items():
            if isinstance(value, Flow) and value.fn.__module__ == module.name:
                found.add((module.name, function, value.name))
    assert found == {(flow.module, flow.name, flow.name) for flow in FLOWS}
