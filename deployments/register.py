"""The work pools and deployments of the embedded stack, made known to its Prefect server.

Runs as a program, `python -m deployments.register`, so that it speaks to the server that its environment
names and never to that of the caller's Prefect profile. What people change on the server stays theirs: limits
of pools, and schedules, pauses, limits, tags and default parameters of deployments.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import PrefectClient

POOLS = ("default", "build-cpu")
"""Process work pools, each with a worker of its own in the embedded stack."""

_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Deployment:
    """A flow under one name on one pool. The flow is named as its function, `@flow(name="build_engine")`."""

    module: str
    flow: str
    name: str
    pool: str

    @property
    def full_name(self) -> str:
        """The name by which `run_deployment` and the API find it."""
        return f"{self.flow}/{self.name}"


def build_pool(pool: str) -> Deployment:
    """The deployment of `build_engine` on a pool of build workers, `build-ARCHITECTURE`."""
    return Deployment("flows.build_engine", "build_engine", pool, pool)


DEPLOYMENTS = (
    Deployment("flows.rebuild", "rebuild", "rebuild", "default"),
    Deployment("flows.rollback", "rollback", "rollback", "default"),
    Deployment("flows.collect_garbage", "collect_garbage", "collect_garbage", "default"),
    build_pool("build-cpu"),
)


def sources_digest() -> str:
    """The digest of every file that the registration is made from; equal means there is nothing to register.

    The parameters' types may lie anywhere below the flows, so all of these files count.
    """
    digest = hashlib.sha256(importlib.metadata.version("prefect").encode())
    folders = [_CHECKOUT / name for name in ("flows", "tasks", "deployments")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(f"{path.relative_to(_CHECKOUT)}\0".encode())
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


async def register(pools: Sequence[str] = POOLS, deployments: Sequence[Deployment] = DEPLOYMENTS) -> None:
    """Make the missing pools and deployments and renew what a deployment has from its flow.

    Speaks to the server of PREFECT_API_URL and raises Prefect's own errors.
    """
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        for pool in pools:
            await _create_pool(client, pool)
        for deployment in deployments:
            flow = cast("Flow[..., Any]", getattr(importlib.import_module(deployment.module), deployment.flow))
            if flow.name != deployment.flow:  # by default Prefect turns underscores into hyphens
                raise ValueError(f"the flow of {deployment.full_name} calls itself '{flow.name}'")
            await _register(client, deployment, flow)


async def _create_pool(client: PrefectClient, name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    pool = WorkPoolCreate(
        name=name, type=ProcessWorker.type, base_job_template=ProcessWorker.get_default_base_job_template()
    )
    try:
        await client.create_work_pool(pool)
    except ObjectAlreadyExists:
        return


async def _register(client: PrefectClient, deployment: Deployment, flow: Flow[..., Any]) -> None:
    from prefect.client.schemas.actions import DeploymentUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.types.entrypoint import EntrypointType
    from prefect.utilities.callables import parameter_schema

    try:
        known = await client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        fresh = await flow.ato_deployment(
            deployment.name, work_pool_name=deployment.pool, entrypoint_type=EntrypointType.MODULE_PATH
        )
        await fresh.aapply()
        return
    # Only what comes from the flow: RunnerDeployment's own update would also reset schedules and limits.
    await client.update_deployment(
        known.id,
        DeploymentUpdate(
            version=flow.version,
            description=flow.description,
            entrypoint=f"{deployment.module}.{deployment.flow}",
            work_pool_name=deployment.pool,
            enforce_parameter_schema=True,
            parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        ),
    )


if __name__ == "__main__":
    asyncio.run(register())
