"""Make an engine: with the child flow `build_engine` on the pool of its kind, unless the store has the engine.

A rebuild starts the child, or attaches to one that already makes the same engine. It waits without a GPU, and in no
slot that its child needs. The child's failure is the rebuild's. A child that died is started again. A child that no
rebuild waits for any more is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows.build_engine import STEPS, make
from flows.build_log import BuildLog
from flows.build_waiters import is_ours, let_go, wait_for
from flows.failure import error_of
from flows.names import BUILD_ENGINE, model_tag
from flows.patience import BUILD_SECONDS, STARTING_PROCESS_SECONDS, STARTING_SECONDS, TAKEN_SECONDS
from flows.report import Report, StepReport
from infra import settings
from infra.errors import StepFailed, StoreUnavailable
from infra.pools.templates import job_variables, worker_image
from infra.s3.bucket import Bucket
from tasks.steps.plan import Plan
from tasks.steps.reference import left_to_worker
from tasks.store.artifact_store import ArtifactStore
from tasks.store.lease import Watch
from tasks.targets.target import Target
from tasks.watch.waves import LATER_QUEUE, WATCH_TAG

_POLL_SECONDS = 0.5
_TRIES = 3
_WORKER_SECONDS = 30.0
_SILENT_LEASES = 3
"""A running build whose lease nobody holds for so many of its lifetimes is taken for dead."""
_PAUSE_AFTER_CRASH_SECONDS = 3.0


@dataclass(frozen=True)
class Child:
    """The run of `build_engine` that makes the engine; `ours` if this rebuild has started it.

    A run that is Pending for more than `pending_s` seconds is taken for dead.
    """

    run: FlowRun
    ours: bool
    pending_s: float


async def make_engine(report: Report, plan: Plan, refresh: frozenset[str], targets: Collection[str] = ()) -> None:
    """Convert, build and upload: in this process if the store has all of it, else on the pool of the kind.

    The engine of a draft model comes first: it becomes part of this one. What its gates on `targets` will compare it
    with is read there too, where this machine cannot read it. For that alone nothing is started unless a gate asks for
    it always: workers may be away while nothing is built.
    Raises StepFailed with the message, code and hint of the child's error.
    """
    left = await asyncio.to_thread(_references_left, plan, targets)
    if refresh.isdisjoint(STEPS) and "always" not in left and await asyncio.to_thread(_is_in_store, plan):
        await make(report, plan, refresh)
    else:
        if plan.drafting is not None:
            await make_engine(report, plan.drafting, refresh)
        await _build_on_pool(report, plan, refresh, bool(left))


def _is_in_store(plan: Plan) -> bool:
    store = ArtifactStore(Bucket.at(settings.load().store))
    return store.find(plan.checkpoint_ref) is not None and store.find(plan.engine_ref) is not None


def _references_left(plan: Plan, targets: Collection[str]) -> frozenset[str]:
    if not plan.model.asks_reference:
        return frozenset()
    store = ArtifactStore(Bucket.at(settings.load().store))
    return left_to_worker(store, plan, [Target(store.bucket, name) for name in targets])


async def _build_on_pool(report: Report, plan: Plan, refresh: frozenset[str], references: bool) -> None:
    log = get_run_logger()
    queue = LATER_QUEUE if WATCH_TAG in flow_run.tags else None
    async with get_client() as client:
        for attempt in range(_TRIES):
            child = await start_or_attach(client, plan, refresh, queue, references)
            await wait_for(client, child.run.id)
            log.info("%s the build %s", "started" if child.ours else "attached to", child.run.name)
            try:
                with report.runs("build") as shown:
                    run = await _finished(client, plan, child, BuildLog(client, child.run.id, plan.model.name, shown))
            except BaseException:
                await asyncio.shield(let_go(client, child.run.id))
                raise
            state = run.state
            assert state is not None
            if state.is_completed():
                await _report_steps(client, report, plan, run.id)
                return
            is_lost = state.is_crashed() or (state.is_cancelled() and not child.ours)
            if is_lost and attempt + 1 < _TRIES:
                log.warning("the build %s ended as %s; starting it again", run.name, state.name)
                await asyncio.sleep(_PAUSE_AFTER_CRASH_SECONDS)
                continue
            await _report_steps(client, report, plan, run.id)
            raise error_of(state, f"the build of {plan.model.name}")


async def start_or_attach(
    client: PrefectClient,
    plan: Plan,
    refresh: frozenset[str],
    queue: str | None = None,
    references: bool = False,
) -> Child:
    """Find the build of this engine that runs or waits, or start one in a work queue of its architecture's pool.

    A build that was asked to make less again than `refresh`, or for no `references`, is not ours to wait for: the new
    one follows it.
    """
    tags = [model_tag(plan.model.name), f"engine:{plan.engine.digest}"]
    pool = await client.read_work_pool(plan.kind.pool())
    pending_s = STARTING_PROCESS_SECONDS if pool.type == "process" else STARTING_SECONDS
    wanted = refresh & set(STEPS)
    earlier = await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=tags[1:])),  # models of one engine share its build
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=10,
    )
    for run in earlier:
        asked = run.parameters
        enough = wanted <= set(asked.get("refresh", [])) and (not references or asked.get("references", False))
        if run.state is not None and not run.state.is_final() and enough:
            return Child(run, False, pending_s)
    # Two rebuilds that ask at the same moment ask with the same key, and get the same run. The next run after one that
    # ended has another key: the identity alone would return a failed run for ever.
    more = ["references"] if references else []
    key = ":".join([str(plan.engine_ref), str(earlier[0].id) if earlier else "first", *sorted(wanted), *more])
    machine = plan.kind.build_machine()
    run = await arun_deployment(
        f"{BUILD_ENGINE.name}/{pool.name}",
        parameters={
            "model": plan.model.model_dump(mode="json", by_alias=True),
            "snapshot": dict(plan.snapshot.document),
            "adapter": None if plan.adapter is None else dict(plan.adapter.document),
            "engine": plan.engine.digest,
            "refresh": sorted(wanted),
            # A deployment of before knows no such parameters.
            **({} if plan.draft is None else {"draft": dict(plan.draft.document)}),
            **({"references": True} if references else {}),
        },
        # As the run calls itself once it has begun.
        flow_run_name=f"build {plan.model.name} {plan.engine.digest:.12}",
        timeout=0,
        idempotency_key=key,
        tags=tags,
        work_queue_name=queue,
        # What the pool lets a run choose.
        job_variables=job_variables(
            pool.base_job_template,
            image=machine.image or worker_image(settings.load().worker_image, machine.tensorrt_llm),
            gpus=machine.gpus,
            product=machine.product,
        ),
        client=client,
    )
    return Child(run, await is_ours(client, run), pending_s)


async def _finished(client: PrefectClient, plan: Plan, child: Child, build_log: BuildLog) -> FlowRun:
    """Wait for a build to end, copying its log into ours. A build whose process died is set to Crashed.

    Raises StepFailed if no worker takes it, or if it never ends.
    """
    log = get_run_logger()
    life = _Life.of(plan, child)
    while True:
        run = await client.read_flow_run(child.run.id)
        assert run.state is not None
        build_log.tell_of(run)
        await build_log.copy()
        if run.state.is_final():
            return run
        life.require_progress(run)
        if await life.has_ended(run):
            log.warning("the process of the build %s is gone", run.name)
            await client.set_flow_run_state(run.id, Crashed(message="its lease expired"), force=True)
        await asyncio.sleep(_POLL_SECONDS)


@dataclass
class _Life:
    """When a build last gave a sign of life: it changed its state, or a running one held the lease of its engine."""

    lease: Watch
    pending_s: float
    silent_s: float
    last_sign: float = field(default_factory=time.monotonic)
    last_type: StateType | None = None
    since: float = field(default_factory=time.monotonic)
    """When it came into that state."""
    warned: bool = False

    @classmethod
    def of(cls, plan: Plan, child: Child) -> _Life:
        config = settings.load()
        lease = Watch(Bucket.at(config.store), plan.engine.digest, config.lease_seconds)
        return cls(lease, child.pending_s, _SILENT_LEASES * config.lease_seconds)

    async def has_ended(self, run: FlowRun) -> bool:
        """Whether a run that has not ended for Prefect has given no sign for too long."""
        if run.state_type is not self.last_type:  # a run that was long Pending has had no time yet to take its lease
            self.last_type, self.last_sign, self.since = run.state_type, time.monotonic(), time.monotonic()
        if run.state_type in (StateType.SCHEDULED, StateType.PAUSED):
            self._warn_of_no_worker(run)
            return False
        if run.state_type is StateType.PENDING:
            return self._silence > self.pending_s
        try:
            if await asyncio.to_thread(self.lease.holder) is not None:
                self.last_sign = time.monotonic()
        except StoreUnavailable:  # a store that is away tells nothing of the build
            self.last_sign = time.monotonic()
        return self._silence > self.silent_s

    def require_progress(self, run: FlowRun) -> None:
        """Raise StepFailed if a run has been in one state for longer than anybody should wait."""
        waited = time.monotonic() - self.since
        if run.state_type is not self.last_type:
            return
        if run.state_type in (StateType.SCHEDULED, StateType.PAUSED) and waited > TAKEN_SECONDS:
            raise StepFailed(
                f"no worker has taken the build {run.name} for {waited / 86400:.1f} days",
                hint=f"start a worker on pool {run.work_pool_name}, then run the rebuild again",
                code="build-not-taken",
            )
        if run.state_type is StateType.RUNNING and waited > BUILD_SECONDS:
            raise StepFailed(
                f"the build {run.name} has been running for {waited / 86400:.1f} days, and still is",
                hint="look at its log in Prefect; cancel it there if it hangs",
                code="build-too-long",
            )

    @property
    def _silence(self) -> float:
        return time.monotonic() - self.last_sign

    def _warn_of_no_worker(self, run: FlowRun) -> None:
        if not self.warned and self._silence > _WORKER_SECONDS:
            self.warned = True
            get_run_logger().warning(
                "no worker has taken the build yet; is one running on pool %s?", run.work_pool_name
            )


async def _report_steps(client: PrefectClient, report: Report, plan: Plan, run_id: UUID) -> None:
    """Add the child's tasks to our report. Their states reach the API a moment after they end."""
    references = {"convert": plan.checkpoint_ref, "upload": plan.engine_ref}
    deadline = time.monotonic() + 5
    while True:
        runs = await client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
            task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id])),
        )
        ended = {run.name.split(" ")[0]: run for run in runs if run.state is not None and run.state.is_final()}
        if set(ended) >= set(STEPS) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    for name in STEPS:
        if name in ended:
            run = ended[name]
            done = run.state is not None and run.state.is_completed()
            artifact = str(references[name]) if done and name in references else None
            seconds = round(run.total_run_time.total_seconds(), 3)
            report.add(StepReport(name, run.state_name or "", seconds, artifact))
