"""Rebuilds of one process that want engines nobody makes: what each does with the build of another.

    python -m tests.flows.build_parents

PREFECT_API_URL is a server with the pool `build-cpu`, which no worker serves. Prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.states import Pending, Running

from flows import build_on_pool
from flows.build_on_pool import Child, make_engine
from flows.report import Report
from infra.errors import EnginehouseError
from infra.settings import CHECKOUT
from tasks.kinds.reference import LlamaCppReference
from tasks.models.catalogue import load_model
from tasks.models.gates import Gates
from tasks.models.spec import Model
from tasks.steps.plan import Plan
from tasks.store.identity import Identity

MODEL = load_model(CHECKOUT / "deployments/models/smollm2-135m.yaml")
GATES = Gates.model_validate({"agreement": {"reference": "auto"}})
COMPARED = MODEL.model_copy(update={"gates": GATES})
"""Of the same engine. Its gates ask for a reference."""
found: list[Child] = []
waits: asyncio.Queue[Child] = asyncio.Queue()


def plan(source: str, model: Model = MODEL) -> Plan:
    return Plan.of(model, Identity({"source": source}))


@flow(name="rebuild", persist_result=False)
async def rebuild(source: str, refresh: list[str], compared: bool = False) -> None:
    wanted = plan(source, COMPARED if compared else MODEL)
    await make_engine(Report(MODEL.name), wanted, frozenset(refresh), ("test",))


def begin(source: str, *refresh: str, compared: bool = False) -> asyncio.Task[None]:
    return asyncio.create_task(rebuild(source, list(refresh), compared))


async def end(parent: asyncio.Task[None]) -> None:
    parent.cancel()
    await asyncio.gather(parent, return_exceptions=True)


async def builds(client: PrefectClient, source: str) -> list[FlowRun]:
    tags = FlowRunFilterTags(all_=[f"engine:{plan(source).engine.digest}"])
    return await client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tags))


async def attached(count: int) -> None:
    """Until so many more parents have a build to wait for."""
    for _ in range(count):
        found.append(await waits.get())


async def state(client: PrefectClient, source: str) -> list[str]:
    return sorted(run.state_type.value if run.state_type else "" for run in await builds(client, source))


async def two_at_once(client: PrefectClient) -> dict[str, Any]:
    """Both look, both find nothing, both ask with one key."""
    barrier, ask = asyncio.Barrier(2), build_on_pool.arun_deployment

    async def together(*arguments: Any, **named: Any) -> Any:
        await barrier.wait()
        return await ask(*arguments, **named)

    build_on_pool.arun_deployment = together
    parents = [begin("at once"), begin("at once")]
    await attached(2)
    build_on_pool.arun_deployment = ask
    await asyncio.sleep(0.5)
    seen: dict[str, Any] = {"builds": len({child.run.id for child in found}), "ours": [child.ours for child in found]}
    starter = parents[0]  # whichever it is, the build stays for the other one
    await end(starter)
    seen["one is cancelled"] = await state(client, "at once")
    await end(parents[1])
    seen["both are cancelled"] = await state(client, "at once")
    return seen


async def refreshes(client: PrefectClient) -> dict[str, Any]:
    parents = [begin("refreshed")]
    await attached(1)
    parents.append(begin("refreshed", "build", "upload"))
    await attached(1)
    parents.append(begin("refreshed", "upload"))
    await attached(1)
    parents.append(begin("refreshed"))
    await attached(1)
    asked = [sorted((await client.read_flow_run(child.run.id)).parameters["refresh"]) for child in found]
    seen: dict[str, Any] = {"asked": asked, "builds": len(await builds(client, "refreshed"))}
    for parent in parents:
        await end(parent)
    seen["end"] = await state(client, "refreshed")
    return seen


def _lacking(self: LlamaCppReference) -> str:
    return "the package xllamacpp"


async def references(client: PrefectClient) -> dict[str, Any]:
    """This machine lacks what the reference is read with. So the build that reads it too is another one."""
    usual, LlamaCppReference.lacking = LlamaCppReference.lacking, _lacking
    parents: list[asyncio.Task[None]] = []
    for compared in (False, True, False, True):
        parents.append(begin("compared", compared=compared))
        await attached(1)
    asked = [(await client.read_flow_run(child.run.id)).parameters.get("references", False) for child in found]
    seen: dict[str, Any] = {"asked": asked, "builds": len(await builds(client, "compared"))}
    LlamaCppReference.lacking = usual
    for parent in parents:
        await end(parent)
    return seen


async def not_taken(client: PrefectClient) -> dict[str, Any]:
    usual, build_on_pool.TAKEN_SECONDS = build_on_pool.TAKEN_SECONDS, 1.0
    seen: dict[str, Any] = {}
    try:
        await begin("not taken")
    except EnginehouseError as error:
        seen = {"code": error.code, "end": await state(client, "not taken")}
    build_on_pool.TAKEN_SECONDS = usual
    return seen


async def never_ends(client: PrefectClient) -> dict[str, Any]:
    build_on_pool.BUILD_SECONDS = 1.0
    parent = begin("never ends")
    await attached(1)
    for next_state in (Pending(), Running()):
        await client.set_flow_run_state(found[0].run.id, next_state)
    try:
        await parent
    except EnginehouseError as error:
        return {"code": error.code, "end": await state(client, "never ends")}
    return {}


async def main() -> None:
    find = build_on_pool.start_or_attach

    async def noted(*arguments: Any, **named: Any) -> Child:
        child = await find(*arguments, **named)
        waits.put_nowait(child)
        return child

    build_on_pool.start_or_attach = noted
    cases: list[Callable[[PrefectClient], Awaitable[dict[str, Any]]]] = [
        two_at_once,
        refreshes,
        references,
        not_taken,
        never_ends,
    ]
    async with get_client() as client:
        for case in cases:
            found.clear()
            while not waits.empty():
                waits.get_nowait()
            print(json.dumps({case.__name__: await asyncio.wait_for(case(client), 60)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
