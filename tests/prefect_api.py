"""A Prefect server with its workers for a test, and requests to one.

The requests go without Prefect's client, which would use the caller's profile and settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from infra.processes.sessions import free_ports, start_session, terminate
from infra.settings import CHECKOUT
from tests.waiting import PATIENCE

OWN = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "PREFECT_WORKER_QUERY_SECONDS": "1"}
"""Environment of every process of Prefect in a test."""


def ask(api_url: str, method: str, path: str, body: object = None, *, credential: str = "") -> Any:
    """What the API answers, as JSON. Raises httpx.HTTPStatusError. `credential` is the `user:password` it asks for."""
    user, _, password = credential.partition(":")
    until = time.monotonic() + 30
    while True:
        answer = httpx.request(
            method, api_url + path, json=body, auth=(user, password) if credential else None, timeout=120
        )
        # SQLite is locked for a moment now and then; Prefect's own clients ask again too.
        if answer.status_code != 503 or time.monotonic() > until:
            answer.raise_for_status()
            return answer.json() if answer.content else None
        time.sleep(0.2)


@contextmanager
def server(folder: Path) -> Generator[str]:
    """The address of the API of a fresh server, which ends with the block."""
    (port,) = free_ports(1)
    with _prefect(folder, "server", {}, "server", "start", "--host", "127.0.0.1", "--port", str(port)) as process:
        until = time.monotonic() + 60 * PATIENCE
        while True:
            try:
                ask(f"http://127.0.0.1:{port}/api", "GET", "/health")
                break
            except httpx.ConnectError:
                assert process.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def worker(folder: Path, api_url: str, pool: str, type: str, environment: Mapping[str, str]) -> Generator[Path]:
    """A worker of this pool, which ends with the block; the path of its log."""
    with _prefect(
        folder, pool, {"PREFECT_API_URL": api_url, **environment}, "worker", "start", "--pool", pool, "--type", type
    ):
        yield folder / f"{pool}.log"


@contextmanager
def _prefect(
    folder: Path, name: str, environment: Mapping[str, str], *arguments: str
) -> Generator[subprocess.Popen[bytes]]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    started = start_session(
        [sys.executable, "-m", "prefect", *arguments],
        log=folder / f"{name}.log",
        folder=CHECKOUT,
        environment={**inherited, **OWN, "PREFECT_HOME": str(folder / name), **environment},
    )
    try:
        yield started
    finally:
        terminate(started, 10)
