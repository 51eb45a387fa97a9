"""How a flow runs as a Prefect flow: under which name and tags, and in which state it ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.utilities.hashing import file_hash

from flows.failure import without_traceback
from flows.fleet_page import show_fleet
from flows.names import FlowName, model_tag, target_tag
from infra.errors import EnginehouseError

P = ParamSpec("P")
T = TypeVar("T")


def named_flow(
    name: FlowName, run_name: str, *, fleet: Literal["", "shown", "shown again"] = ""
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Flow[P, Coroutine[Any, Any, T]]]:
    """Make an async function the flow `name`; `run_name` is a template that takes the function's parameters.

    Each run has the tags of its flow, model and targets, and ends without a traceback where an error is ours. `fleet`:
    what it changes of the fleet is shown as it ends, beside what was shown before, or again in its place.
    """

    def made(function: Callable[P, Coroutine[Any, Any, T]]) -> Flow[P, Coroutine[Any, Any, T]]:
        @wraps(function)
        async def call(*arguments: P.args, **named: P.kwargs) -> T:
            await tag_run(*name.tags, *tags_of(cast("Mapping[str, object]", flow_run.parameters)))
            try:
                result = await function(*arguments, **named)
            except EnginehouseError:
                await _show(fleet)
                raise
            await _show(fleet)
            return result

        # Prefect would look for the names of types in this file, and take the version from it.
        cast(Any, call).__signature__ = inspect.signature(function, eval_str=True)
        version = file_hash(str(inspect.getsourcefile(function)))
        return flow(name=name.name, flow_run_name=run_name, version=version, persist_result=False)(
            without_traceback(call)
        )

    return made


async def _show(fleet: str) -> None:
    if fleet:
        await show_fleet(again=fleet == "shown again")


async def tag_run(*tags: str) -> None:
    """Add tags to this run, if there is one. They are for people: it goes on without them if the server is away."""
    if FlowRunContext.get() is None:
        return
    with suppress(httpx.HTTPError):
        async with get_client() as client:
            run = await client.read_flow_run(UUID(str(flow_run.id)))
            if missing := [tag for tag in dict.fromkeys(tags) if tag not in run.tags]:
                await client.update_flow_run(run.id, tags=[*run.tags, *missing])


def tags_of(parameters: Mapping[str, object]) -> Iterator[str]:
    """The tags of the model and the targets that a run is asked for."""
    for holder in (parameters, parameters.get("payload")):
        match holder:
            case {"model": str(model)} | {"model": {"name": str(model)}}:
                yield model_tag(model)
            case _:
                pass
    of_one = parameters.get("target")
    if isinstance(of_one, str) and of_one:
        yield target_tag(of_one)
    for target in cast("Iterable[object] | None", parameters.get("targets")) or ():
        yield target_tag(str(target))
