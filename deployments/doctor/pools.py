"""Work pools, deployments and workers, compared with what `enginehouse deploy` would make for this catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from deployments.doctor.check import Check, Finding, fine, notice, wrong
from deployments.doctor.models import models
from deployments.doctor.prefect_api import PrefectApi, prefect_api
from deployments.prefect_server.desired import Pool, desired
from infra.settings import Settings


@dataclass(frozen=True)
class _Pool:
    name: str
    type: str
    is_paused: bool = False


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _Worker:
    name: str
    status: str


_POOLS, _NAMES, _WORKERS = TypeAdapter(list[_Pool]), TypeAdapter(list[_Named]), TypeAdapter(list[_Worker])


def _look(settings: Settings) -> Iterator[Finding]:
    wanted = desired(settings, models(settings))
    with prefect_api() as api:
        names = [pool.name for pool in wanted.pools]
        asked: dict[str, Any] = {"work_pools": {"name": {"any_": names}}}
        found = {pool.name: pool for pool in api.ask(_POOLS, "POST", "/work_pools/filter", asked)}
        for pool in wanted.pools:
            yield from _of_pool(api, pool, found.get(pool.name))
        deployments = {each.name for each in wanted.deployments}
        asked = {"deployments": {"name": {"any_": sorted(deployments)}}}
        there = {each.name for each in api.ask(_NAMES, "POST", "/deployments/filter", asked)}
        if absent := sorted(deployments - there):
            yield wrong("deployment-missing", f"the server has no deployment {', '.join(absent)}", "enginehouse deploy")
        else:
            yield fine(f"all {len(deployments)} deployments are there")


def _of_pool(api: PrefectApi, wanted: Pool, found: _Pool | None) -> Iterator[Finding]:
    if found is None:
        yield wrong("pool-missing", f"the server has no work pool '{wanted.name}'", "enginehouse deploy")
        return
    if found.type != wanted.type:
        yield wrong(
            "pool-type",
            f"the work pool '{wanted.name}' is of type {found.type}, and the settings say {wanted.type}",
            f"export ENGINEHOUSE_POOLS='{wanted.name}={found.type}', or: prefect work-pool delete {wanted.name} && "
            "enginehouse deploy",
        )
    if found.is_paused:
        what = f"the work pool '{wanted.name}' is paused: no run of it starts"
        yield wrong("pool-paused", what, f"prefect work-pool resume {wanted.name}")
    workers = api.ask(_WORKERS, "POST", f"/work_pools/{wanted.name}/workers/filter", {})
    online = [worker.name for worker in workers if worker.status == "ONLINE"]
    if online:
        yield fine(f"'{wanted.name}' has {len(online)} workers: {', '.join(sorted(online))}")
        return
    what = f"no worker of the work pool '{wanted.name}' reports: its runs wait"
    start = f"prefect worker start --pool {wanted.name} --type {found.type}, on a machine of it"
    # Every run but a build begins on the default pool. A machine with GPUs may be up for a build only.
    yield (wrong if wanted.name == "default" else notice)("pool-without-worker", what, start)


CHECK = Check("pools", "work pools, their workers, and the deployments", _look, needs="prefect")
