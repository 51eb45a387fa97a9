"""A flow for pools whose runs a test looks at from outside. It needs nothing, and logs in which image it ran."""

from __future__ import annotations

import os

from prefect import flow, get_run_logger


@flow(name="pod_flow", persist_result=False)
async def pod_flow() -> None:
    get_run_logger().info("ran with the digest %s", os.environ["ENGINEHOUSE_CONTAINER_DIGEST"])
