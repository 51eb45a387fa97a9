"""What Enginehouse wants on a Prefect server: work pools, deployments and automations. Imports no Prefect.

No resource belongs to one model, whatever the size of the catalogue: what differs per model lies in its file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from deployments.prefect_server.choices import Choice
from flows.names import (
    APPROVE,
    BUILD_ENGINE,
    COLLECT_GARBAGE,
    FINETUNED,
    FLOWS,
    ON_DEFAULT_POOL,
    REBUILD,
    RECONCILE,
    REFUSED,
    ROLLBACK,
    UNDECIDED,
    WAITING,
    WATCH_RELEASES,
    FlowName,
)
from flows.patience import RECONCILE_AFTER_CRASH_SECONDS, SILENT_HEARTBEATS
from infra.errors import SettingsError
from infra.images import images
from infra.settings import PoolType, Settings
from tasks.finetuned.event import EVENT
from tasks.kinds.choice import engine_kind
from tasks.models.spec import Model
from tasks.watch.waves import LATER_QUEUE, WATCH_TAG

POOLS = ("default", "build-cpu")
"""The work pools that every server has. In the embedded stack each has a process worker of its own."""


@dataclass(frozen=True)
class Pool:
    """A work pool. `limit` is the number of runs at once; None: as many as workers take.

    `queues` are those below the queue that every pool has, by priority. `image` is the one of containers, as in the
    settings.
    """

    name: str
    limit: int | None = None
    type: PoolType = "process"
    image: str = ""
    queues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployment:
    """A flow under one name on one pool. The flow is named as its function, `@flow(name="build_engine")`.

    `schedule` is a cron expression in UTC, or empty. Runs beyond `limit` at once wait. Each run has the `tags`.
    Its form offers `choices`.
    """

    module: str
    flow: str
    name: str
    pool: str
    schedule: str = ""
    limit: int | None = None
    tags: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def entrypoint(self) -> str:
        return f"{self.module}.{self.flow}"

    @property
    def full_name(self) -> str:
        """The name by which `run_deployment` and the API find it."""
        return f"{self.flow}/{self.name}"


ENDS = ("Completed", WAITING, "Failed", REFUSED, UNDECIDED, "Crashed", "Cancelled")
"""The names of the states in which a run ends, as its events have them. A state's event is named by the state's name,
not by its type."""
FAILURES = ("Failed", REFUSED, UNDECIDED)


@dataclass(frozen=True)
class Ended:
    """A run of the deployment `of` has come to a state of one of these names. With `tag`, only runs with it count."""

    of: str
    states: tuple[str, ...]
    tag: str = ""


@dataclass(frozen=True)
class Received:
    """The server has received the event `event`."""

    event: str


@dataclass(frozen=True)
class Silent:
    """A run of one of the flows, wherever it was started, has sent no heartbeat and not ended for so many seconds."""

    flows: tuple[str, ...]
    seconds: int


@dataclass(frozen=True)
class Troubled:
    """A run of one of the flows has failed, crashed, or left a release to a person. A refused release is a failure."""

    flows: tuple[str, ...]


@dataclass(frozen=True)
class RunDeployment:
    """Run a deployment. With `with_event`, its parameters `event` and `payload` are the event's id and payload."""

    deployment: str
    with_event: bool = False
    after_seconds: int = 0


@dataclass(frozen=True)
class Crash:
    """Set the run to Crashed, which lets go of its slots."""

    message: str


@dataclass(frozen=True)
class Notify:
    """Notify people of the run, by a notification block of the server, `TYPE/NAME`."""

    block: str


@dataclass(frozen=True)
class Automation:
    """What a Prefect server does by itself."""

    name: str
    description: str
    when: Ended | Received | Silent | Troubled
    do: RunDeployment | Crash | Notify


@dataclass(frozen=True)
class Desired:
    pools: tuple[Pool, ...]
    deployments: tuple[Deployment, ...]
    automations: tuple[Automation, ...]


def build_pool(pool: str) -> Deployment:
    """The deployment of `build_engine` on a pool of build workers, `build-ARCHITECTURE`."""
    return _deployment(BUILD_ENGINE, pool, pool)


def _deployment(
    flow: FlowName,
    name: str,
    pool: str,
    schedule: str = "",
    limit: int | None = None,
    choices: tuple[Choice, ...] = (),
) -> Deployment:
    return Deployment(flow.module, flow.name, name, pool, schedule, limit, flow.tags, choices)


def desired(settings: Settings, catalogue: Iterable[Model]) -> Desired:
    """Everything that is wanted, with a build pool for each architecture of the catalogue."""
    models = tuple(catalogue)
    names = [*POOLS, *sorted({engine_kind(model).pool() for model in models} - set(POOLS))]
    limits, types = dict(settings.pool_limits), dict(settings.pools)
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
            *_deployments(settings, _choices(settings, models)),
            *(build_pool(name) for name in names if name.startswith("build-")),
        ),
        automations=tuple(_automations(settings)),
    )


def _choices(settings: Settings, models: tuple[Model, ...]) -> tuple[Choice, ...]:
    """What the forms offer: the catalogue's models and targets, and versions that it or the list of images names."""
    versions = {runtime.version for model in models if (runtime := model.recipe.planned_runtime) is not None}
    with suppress(SettingsError):  # the release watch says what is wrong with the list
        versions |= set(images(settings.images))
    return (
        Choice("model", ("model", "retry"), tuple(sorted(model.name for model in models))),
        Choice("target", ("target", "targets"), tuple(sorted({name for model in models for name in model.targets}))),
        Choice("runtime", ("runtime",), tuple(map(str, sorted(versions, reverse=True)))),
    )


def _deployments(settings: Settings, choices: tuple[Choice, ...]) -> tuple[Deployment, ...]:
    schedules = {
        COLLECT_GARBAGE: settings.gc_schedule,
        WATCH_RELEASES: settings.watch_schedule,
        RECONCILE: settings.reconcile_schedule,
    }
    # The others run one at a time: two would only find the same, and what an automation adds while one runs must wait,
    # not vanish.
    limits = {REBUILD: settings.rebuilds, ROLLBACK: None, APPROVE: None}
    return tuple(
        _deployment(flow, flow.name, "default", schedules.get(flow, ""), limits.get(flow, 1), choices)
        for flow in ON_DEFAULT_POOL
    )


def _automations(settings: Settings) -> Iterator[Automation]:
    yield Automation(
        name="release-watch",
        description="When a rebuild of the release watch has ended, start those that waited for it.",
        when=Ended(REBUILD.deployment, ENDS, WATCH_TAG),
        do=RunDeployment(WATCH_RELEASES.deployment),
    )
    yield Automation(
        name="finetuned",
        description="When new weights of a model are announced, have it rebuilt with them.",
        when=Received(EVENT),
        do=RunDeployment(FINETUNED.deployment, with_event=True),
    )
    yield Automation(
        name="lost-runs",
        description="When a run sends no heartbeat any more, it has crashed: its worker and its process are gone.",
        when=Silent(tuple(flow.name for flow in FLOWS), SILENT_HEARTBEATS * settings.heartbeat_seconds),
        do=Crash("it sends no heartbeat any more: its worker and its process are gone"),
    )
    yield Automation(
        name="crashed-rebuilds",
        description="When a rebuild has crashed, start it again, once.",
        when=Ended(REBUILD.deployment, ("Crashed",)),
        do=RunDeployment(RECONCILE.deployment, after_seconds=RECONCILE_AFTER_CRASH_SECONDS),
    )
    if settings.notify:
        yield Automation(
            name="notify",
            description="When a run has failed or crashed, or a release was refused or waits, notify people.",
            # The rebuild of a failed build fails too.
            when=Troubled(tuple(flow.name for flow in ON_DEFAULT_POOL)),
            do=Notify(settings.notify),
        )
