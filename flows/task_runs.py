"""How a step runs as a Prefect task: when it is retried, in which state it ends, what the report and the log get of it.

Prefect's own result caching is off: the store is the only cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from flows import ui
from flows.failure import without_traceback
from flows.report import Report, StepReport
from flows.telling import TellingBytes, telling
from flows.traces import begin_traces
from infra import settings
from infra.errors import EnginehouseError
from infra.progress import Progress
from tasks.steps.context import Context, Done
from tasks.store.reporter import Reporter

# Prefect makes the span of a flow run before the flow begins: the last moment is when the flow is imported.
begin_traces()

P = ParamSpec("P")
T = TypeVar("T")

StepTask: TypeAlias = Task[P, Coroutine[Any, Any, T]]
"""The task of a step that gives a T."""


async def worth_retrying(task: object, task_run: object, state: State[Any]) -> bool:
    """Whether the error that failed a task says that the same call may succeed later."""
    error = await state.aresult(raise_on_failure=False)
    return isinstance(error, EnginehouseError) and error.retryable


def step(name: str, run_name: str) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], StepTask[P, T]]:
    """Make an async function the task `name`; `run_name` is a template that takes the function's parameters."""
    made = task(
        name=name,
        task_run_name=run_name,
        # 2, 4, 8, 16, 32 s and half as much again at most: a store that is restarted is back within that.
        retries=5,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return lambda function: made(without_traceback(function))


def ends_as(state: str, result: T, message: str | None = None) -> T:
    """What a task returns so that its run ends as Completed under the name `state`, and its caller gets `result`."""
    # Prefect hands the caller the data of a state that a task returns. Its types do not know that.
    return cast("T", Completed(name=state, data=result, message=message))


def cached_or_completed(done: Done) -> Done:
    """What the task of a step that makes an artifact returns: its run ends as Cached where nothing had to be made."""
    return ends_as("Cached", done) if done.cached else done


async def run(report: Report, step: StepTask[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a step's task, add its state and time to `report`, and return its result or raise its error."""
    started = time.monotonic()
    with report.runs(step.name):
        state, result = await _ended(step, *arguments, **named)
    artifact = result.artifact if isinstance(result, Done) else None
    seconds = round(time.monotonic() - started, 3)
    report.add(StepReport(step.name, state.name or "", seconds, None if artifact is None else str(artifact.ref)))
    if isinstance(result, BaseException):
        raise result
    return result


async def result_of(step: StepTask[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a task that `without_traceback` ends, without a report, and return its result or raise its error."""
    _, result = await _ended(step, *arguments, **named)
    if isinstance(result, BaseException):
        raise result
    return result


async def _ended(step: StepTask[P, T], *arguments: P.args, **named: P.kwargs) -> tuple[State[T], T | BaseException]:
    # An async task has to be awaited with `return_state` too; the types of Prefect 3.8.8 have the state at once.
    state = await cast("Awaitable[State[T]]", step(*arguments, return_state=True, **named))
    return state, cast("T | BaseException", await state.aresult(raise_on_failure=False))


def step_context(work: str, reporter: Reporter | None = None) -> Context:
    """What a step of this flow run is given. `work` names its workspace: the identity of what is made in it."""
    return Context.of(settings.load(), str(flow_run.id or ""), work, reporter)


async def make_artifact(make: Callable[[Context], Done], work: str, label: str, *, bar: bool = False) -> Done:
    """Run a step that makes an artifact, in a thread, and show the artifact; `bar` shows its progress too."""
    get_run_logger().info("%s begins", label)
    async with _progress(label, bar=bar) as advance:
        done = await asyncio.to_thread(make, step_context(work, Reporter(advance, telling())))
    if done.artifact is not None and not done.cached:
        await ui.show_manifest(done.artifact)
    return done


@asynccontextmanager
async def _progress(label: str, *, bar: bool) -> AsyncGenerator[Progress]:
    """Takes bytes done and in all. Tells of them every second, and with `bar` a progress artifact too."""
    telling_bytes, latest = TellingBytes(label), (0, 0)

    def advance(done: int, total: int) -> None:
        nonlocal latest
        latest = (done, total)

    async def follow() -> None:
        shown: ui.ProgressBar | None = None
        seen = latest
        try:
            while True:
                done, total = latest
                # A transfer that stands still gets slower by the second. After its end the tool's words count.
                if total and (latest != seen or done < total):
                    seen = done, total
                    telling_bytes.look(done, total)
                    if bar:
                        shown = shown or await ui.ProgressBar.create(label)
                        await shown.update(100 * done / total)
                await asyncio.sleep(1)
        except asyncio.CancelledError:
            if bar and latest[1]:  # a quick one ends before the first look at it
                shown = shown or await ui.ProgressBar.create(label)
                await shown.update(100 * latest[0] / latest[1])

    follower = asyncio.create_task(follow())
    try:
        yield advance
    finally:
        follower.cancel()
        await follower
