"""A Postgres and a Redis of a test's own, for a Prefect server that has several replicas."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.processes.sessions import free_ports, start_session, terminate
from tests.waiting import wait


@contextmanager
def postgres_and_redis() -> Generator[dict[str, str]]:
    """Both, as variables of a Prefect server. The test is skipped where one of them is not installed."""
    # Debian keeps the programs of Postgres apart from the others.
    folders = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    found = {name: shutil.which(name, path=os.pathsep.join(folders)) for name in ("initdb", "postgres", "redis-server")}
    tools = {name: path for name, path in found.items() if path is not None}
    missing = sorted(found.keys() - tools.keys())
    missing += [] if importlib.util.find_spec("prefect_redis") else ["prefect-redis"]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    # Postgres refuses to run as root, and pytest's folders are closed to everybody else.
    folder = Path(tempfile.mkdtemp(prefix="enginehouse-postgres-"))
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.getuid() == 0 else ()
    if nobody:
        os.chown(folder, 65534, 65534)
    subprocess.run(
        [*nobody, tools["initdb"], "--auth=trust", "--username=prefect", "--no-sync", "-D", str(folder / "data")],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    postgres, redis = free_ports(2)
    commands = {
        postgres: [
            *nobody,
            tools["postgres"],
            *("-D", str(folder / "data"), "-p", str(postgres), "-h", "127.0.0.1", "-k", str(folder)),
        ],
        redis: [tools["redis-server"], "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
    }
    running = {
        port: start_session(command, log=folder / f"{port}.log", folder=folder, environment=os.environ)
        for port, command in commands.items()
    }

    def accepts(port: int) -> bool:
        assert running[port].poll() is None, (folder / f"{port}.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return True

    try:
        for port in running:
            wait(lambda port=port: accepts(port), f"connection to {port}", 60)
        yield {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://prefect@127.0.0.1:{postgres}/postgres",
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(redis),
        }
    finally:
        for process in running.values():
            terminate(process, 10)
        shutil.rmtree(folder)
