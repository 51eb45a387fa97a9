"""The services of the embedded stack: how each is started, and how one finds out that it works.

All listen on 127.0.0.1 alone, keep their data under one home and carry its mark in their environment.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from deployments.prefect_server.desired import POOLS
from infra.processes import background, sessions
from infra.s3 import seaweedfs
from infra.settings import Settings
from infra.traces.collector import prefect_environment
from infra.triton.command import EXIT_TIMEOUT_S
from infra.triton.supervisor import NODE_GRACE_S

S3_PORTS = seaweedfs.PORT_NAMES
PREFECT_PORTS = ("prefect",)
NODE_PORTS = ("triton-http", "triton-grpc", "triton-metrics", "node-health")
GATEWAY_PORTS = ("gateway-http", "gateway-grpc")
PORT_NAMES = (*S3_PORTS, *PREFECT_PORTS, *NODE_PORTS, *GATEWAY_PORTS)

WORKERS = {f"worker-{pool}": pool for pool in POOLS}
NAMES = ("s3", "prefect", *WORKERS, "node", "gateway")
"""In the order of their needs: each needs at most those before it."""

BUCKET = "enginehouse"

GATEWAY_GRACE_S = EXIT_TIMEOUT_S + 10.0
"""What a service manager has to grant a gateway between SIGTERM and SIGKILL: its answers end, then itself."""

_NODE_MODULE = "deployments.node.agent"
_GATEWAY_MODULE = "deployments.gateway.serve"
_PREFECT_MODULE = "deployments.stack.prefect_on_loopback"
# Whatever gateway of another place the shell is set up for. Keys may stay: then the stack's asks for them too.
_ON_LOOPBACK = {
    "ENGINEHOUSE_GATEWAY_ADDRESS": "127.0.0.1",
    "ENGINEHOUSE_GATEWAY_TARGETS": "",
    "ENGINEHOUSE_GATEWAY_CERTIFICATE": "",
    "ENGINEHOUSE_GATEWAY_CERTIFICATE_KEY": "",
    "ENGINEHOUSE_GATEWAY_GRACE_SECONDS": str(EXIT_TIMEOUT_S),
}
_HTTP_TIMEOUT_S = 2.0
# The stack must not get what the shell is set up with for other servers: a session token or profile of AWS, a
# Prefect API key. A private certificate authority may stay.
_FOREIGN = ("AWS_", "PREFECT_")
_KEPT = ("AWS_CA_BUNDLE",)


@dataclass(frozen=True)
class Credentials:
    """Of a home: its one S3 identity, and what Prefect's API asks for, `user:password`. Empty is what it lacks."""

    access_key: str = ""
    secret_key: str = ""
    prefect: str = ""


@dataclass(frozen=True)
class Service:
    """One service. `launch` is given its log, `is_healthy` when the process was created.

    It must be healthy after `start_s` seconds, and is killed `stop_s` seconds after SIGTERM. One that
    `adopts_leftovers` takes over itself what a killed one has left on its ports.
    """

    name: str
    address: str
    ports: Mapping[str, int]
    start_s: float
    stop_s: float
    launch: Callable[[Path], subprocess.Popen[bytes]]
    is_healthy: Callable[[datetime], bool]
    adopts_leftovers: bool = False


def client_environment(ports: Mapping[str, int], credentials: Credentials) -> dict[str, str]:
    """The variables by which any client reaches the stack."""
    return {
        "AWS_ENDPOINT_URL_S3": seaweedfs.endpoint_url(ports),
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_DEFAULT_REGION": seaweedfs.REGION,
        "ENGINEHOUSE_STORE": f"s3://{BUCKET}",
        "PREFECT_API_URL": f"http://127.0.0.1:{ports['prefect']}/api",
        "PREFECT_API_AUTH_STRING": credentials.prefect,
        "ENGINEHOUSE_TRITON_HTTP": f"http://127.0.0.1:{ports['triton-http']}",
        "ENGINEHOUSE_TRITON_GRPC": f"127.0.0.1:{ports['triton-grpc']}",
        "ENGINEHOUSE_GATEWAY_HTTP": f"http://127.0.0.1:{ports['gateway-http']}",
        "ENGINEHOUSE_GATEWAY_GRPC": f"127.0.0.1:{ports['gateway-grpc']}",
    }


def service_environment(settings: Settings, ports: Mapping[str, int], credentials: Credentials) -> dict[str, str]:
    """The whole environment of the stack's own processes, and through them of its flow runs and Triton."""
    inherited = {name: value for name, value in os.environ.items() if name in _KEPT or not name.startswith(_FOREIGN)}
    return {
        **inherited,
        **client_environment(ports, credentials),
        background.MARKER: str(settings.home),
        "ENGINEHOUSE_HOME": str(settings.home),
        "ENGINEHOUSE_CATALOGUE": str(settings.catalogue),
        "ENGINEHOUSE_TARGET": settings.target,
        "ENGINEHOUSE_LEASE_SECONDS": str(settings.lease_seconds),
        "ENGINEHOUSE_NODE_METRICS_PORT": str(ports["triton-metrics"]),
        "ENGINEHOUSE_NODE_HEALTH_PORT": str(ports["node-health"]),
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(settings.heartbeat_seconds),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_LOGGING_COLORS": "false",
        "PYTHONUNBUFFERED": "1",
        **prefect_environment(os.environ),
    }


def _server_environment(client: Mapping[str, str]) -> dict[str, str]:
    """What the Prefect server needs beyond. Its own UI is the only page of a browser that may call it."""
    ui = client["PREFECT_API_URL"].removesuffix("/api")
    return {
        "PREFECT_SERVER_API_AUTH_STRING": client["PREFECT_API_AUTH_STRING"],
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{ui},{ui.replace('127.0.0.1', 'localhost')}",
    }


def services(settings: Settings, ports: Mapping[str, int], credentials: Credentials) -> dict[str, Service]:
    """Every service by name, in the order of NAMES."""
    environment = service_environment(settings, ports, credentials)
    python = partial(_launch_python, settings.home, environment)
    api, credential = environment["PREFECT_API_URL"], environment["PREFECT_API_AUTH_STRING"]
    triton, gateway = environment["ENGINEHOUSE_TRITON_HTTP"], environment["ENGINEHOUSE_GATEWAY_HTTP"]
    server_environment = {**environment, **_server_environment(environment)}
    workers = (
        Service(
            name=name,
            address=f"work pool {pool}",
            ports={},
            start_s=60,
            stop_s=10,
            launch=partial(python, ("prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name)),
            is_healthy=partial(_worker_reports, f"{api}/work_pools/{pool}/workers/filter", credential, name),
        )
        for name, pool in WORKERS.items()
    )
    found = (
        Service(
            name="s3",
            address=seaweedfs.endpoint_url(ports),
            ports={name: ports[name] for name in S3_PORTS},
            start_s=30,
            stop_s=10,
            launch=lambda log: seaweedfs.launch(
                settings.home / "s3",
                log,
                ports,
                credentials.access_key,
                credentials.secret_key,
                environment={background.MARKER: str(settings.home)},
            ),
            is_healthy=lambda _: answers(f"{seaweedfs.endpoint_url(ports)}/healthz"),
        ),
        Service(
            name="prefect",
            address=api.removesuffix("/api"),
            ports={name: ports[name] for name in PREFECT_PORTS},
            start_s=120,
            stop_s=10,
            launch=partial(_launch_python, settings.home, server_environment, (_PREFECT_MODULE, str(ports["prefect"]))),
            # Not /health, which answers everybody: a server with another credential is of no use.
            is_healthy=lambda _: answers(f"{api}/admin/version", credential),
        ),
        *workers,
        Service(
            name="node",
            address=triton,
            ports={name: ports[name] for name in NODE_PORTS},
            start_s=60,
            stop_s=NODE_GRACE_S,
            launch=partial(python, (_NODE_MODULE,)),
            is_healthy=lambda _: answers(f"{triton}/v2/health/ready"),
            adopts_leftovers=True,
        ),
        Service(
            name="gateway",
            address=gateway,
            ports={name: ports[name] for name in GATEWAY_PORTS},
            start_s=60,
            stop_s=GATEWAY_GRACE_S,
            launch=partial(_launch_python, settings.home, {**environment, **_ON_LOOPBACK}, (_GATEWAY_MODULE,)),
            is_healthy=lambda _: answers(f"{gateway}/health"),
        ),
    )
    return {service.name: service for service in found}


def _launch_python(
    home: Path, environment: Mapping[str, str], arguments: tuple[str, ...], log: Path
) -> subprocess.Popen[bytes]:
    # -P: nothing that lies in the home is ever imported.
    command = (sys.executable, "-P", "-m", *arguments)
    # Triton's shared memory holds requests and answers, and lies where every user looks.
    return sessions.start_session(command, log=log, folder=home, environment=environment, umask=0o077)


@dataclass(frozen=True)
class _Worker:
    """A worker as Prefect's API describes it, in part."""

    name: str
    status: str
    last_heartbeat_time: datetime | None


_WORKERS = TypeAdapter(list[_Worker])


def _worker_reports(url: str, credential: str, name: str, created: datetime) -> bool:
    """Whether the worker `name` has sent the server a heartbeat since it was created, and not long ago."""
    headers = {"Content-Type": "application/json", **_authorization(credential)}
    response = _request(urllib.request.Request(url, data=b"{}", headers=headers))
    return response is not None and any(
        (worker.name, worker.status) == (name, "ONLINE")
        and worker.last_heartbeat_time is not None
        and worker.last_heartbeat_time >= created
        for worker in _WORKERS.validate_json(response)
    )


def answers(url: str, credential: str = "") -> bool:
    """Whether a GET of `url` succeeds, with the `user:password` of Prefect's API where it is one of that."""
    return _request(urllib.request.Request(url, headers=_authorization(credential))) is not None


def _authorization(credential: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(credential.encode()).decode()}"} if credential else {}


def _request(request: urllib.request.Request) -> bytes | None:
    # Loopback: never through the proxy that the environment may name.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_HTTP_TIMEOUT_S) as response:
            return response.read()
    except OSError:  # refused, timed out, or an HTTP status of an error
        return None
