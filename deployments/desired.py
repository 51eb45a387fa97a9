"""What Enginehouse wants on a Prefect server: work pools, deployments and automations. Imports no Prefect.

Per model there is nothing here: what differs per model lies in its file, whatever the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from infra.settings import PoolType, Settings
from tasks.engines import engine_kind
from tasks.spec import Model
from tasks.waves import LATER_QUEUE, RUN_TAG

POOLS = ("default", "build-cpu")
"""Work pools that there always are, each with a process worker of its own in the embedded stack."""


@dataclass(frozen=True)
class Pool:
    """A work pool. `limit`: runs at once; None: as many as workers take.

    Beside the queue that every pool has, whose runs come first, it has `queues`, by priority. `image` is that of
    containers, as in the settings.
    """

    name: str
    limit: int | None = None
    type: PoolType = "process"
    image: str = ""
    queues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployment:
    """A flow under one name on one pool. The flow is named as its function, `@flow(name="build_engine")`.

    `schedule` is a cron expression in UTC, or empty. Of more than `limit` runs at once the others wait.
    """

    module: str
    flow: str
    name: str
    pool: str
    schedule: str = ""
    limit: int | None = None

    @property
    def full_name(self) -> str:
        """The name by which `run_deployment` and the API find it."""
        return f"{self.flow}/{self.name}"


@dataclass(frozen=True)
class Automation:
    """Runs the deployment `runs` when a run of `of` with the tag `tag` has come to one of the states `after`."""

    name: str
    description: str
    of: str
    tag: str
    after: tuple[Literal["Completed", "Failed", "Crashed", "Cancelled"], ...]
    runs: str


@dataclass(frozen=True)
class Desired:
    pools: tuple[Pool, ...]
    deployments: tuple[Deployment, ...]
    automations: tuple[Automation, ...]


def build_pool(pool: str) -> Deployment:
    """The deployment of `build_engine` on a pool of build workers, `build-ARCHITECTURE`."""
    return Deployment("flows.build_engine", "build_engine", pool, pool)


def desired(settings: Settings, catalogue: Iterable[Model]) -> Desired:
    """All of it, with a build pool for each architecture of the catalogue."""
    names = [*POOLS, *sorted({engine_kind(model).pool(model) for model in catalogue} - set(POOLS))]
    limits, types = dict(settings.pool_limits), dict(settings.pools)
    rebuild = Deployment("flows.rebuild", "rebuild", "rebuild", "default", limit=settings.rebuilds)
    # One at a time: two would only find the same, and what an automation adds while one runs must wait, not vanish.
    watch = Deployment(
        "flows.watch_releases", "watch_releases", "watch_releases", "default", settings.watch_schedule, limit=1
    )
    return Desired(
        pools=tuple(
            Pool(
                name,
                limits.get(name),
                types.get(name, "process"),
                settings.worker_image,
                (LATER_QUEUE,) if name.startswith("build-") else (),
            )
            for name in names
        ),
        deployments=(
            rebuild,
            Deployment("flows.rollback", "rollback", "rollback", "default"),
            Deployment(
                "flows.collect_garbage", "collect_garbage", "collect_garbage", "default", settings.gc_schedule, limit=1
            ),
            watch,
            *(build_pool(name) for name in names if name.startswith("build-")),
        ),
        automations=(
            Automation(
                name="release-watch",
                description="When a rebuild of the release watch has ended, start those that waited for it.",
                of=rebuild.full_name,
                tag=RUN_TAG,
                after=("Completed", "Failed", "Crashed", "Cancelled"),
                runs=watch.full_name,
            ),
        ),
    )
