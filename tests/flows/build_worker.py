"""A build worker with the stand-in toolchain, on a pool of its own beside the stack's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from infra.processes.sessions import start_session, terminate
from tests.standin import toolchain

if TYPE_CHECKING:
    from tests.flows.conftest import House

POOL = "build-sm90"
PRODUCT = "NVIDIA H100 80GB HBM3"


def register(pool: str = POOL) -> None:
    """Make the pool, and its deployment of `build_engine`, in the stack of this process's environment."""
    program = f"""
import asyncio
from deployments.prefect_server.desired import Desired, Pool, build_pool
from deployments.prefect_server.register import deploy
asyncio.run(deploy(Desired((Pool("{pool}"),), (build_pool("{pool}"),), ()), lambda change: None))
"""
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "DO_NOT_TRACK": "1"}, check=True)


@contextmanager
def worker(house: House, folder: Path, version: str, digest: str = "") -> Generator[toolchain.Toolchain]:
    """A build worker whose image has TensorRT-LLM `version` and, where it is known, the digest."""
    made = toolchain.make(folder / "image", version)
    started = start_session(
        [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"],
        log=folder / "worker.log",
        folder=folder,
        environment={
            **house.environment,
            **house.variables,
            "ENGINEHOUSE_TOOLCHAIN": made.setting,
            "ENGINEHOUSE_CONTAINER_DIGEST": digest,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        },
    )
    try:
        yield made
    finally:
        terminate(started, 10)
