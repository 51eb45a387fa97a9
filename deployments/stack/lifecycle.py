"""The embedded stack of `enginehouse up`: S3, Prefect with two workers, a node with its Triton, and a gateway.

Its whole state lies under `settings.home`, as `home.py` describes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from deployments.stack.home import Home, Report
from deployments.stack.registration import register
from deployments.stack.services import (
    BUCKET,
    NAMES,
    PORT_NAMES,
    WORKERS,
    Service,
    client_environment,
    service_environment,
    services,
)
from deployments.stack.starting import Start, created
from infra.errors import SettingsError
from infra.processes import background
from infra.processes.sessions import terminate
from infra.s3 import seaweedfs
from infra.settings import Settings

NEEDED_FREE_BYTES = 3 << 29
"""1.5 GiB: the embedded model as fetched, converted and built, twice (workspace and store), with releases."""


@dataclass(frozen=True)
class ServiceStatus:
    """What `status` knows of one service. `pid` and `since` are None if it is stopped."""

    name: str
    state: Literal["running", "stopped", "unhealthy"]
    pid: int | None
    address: str
    log: Path
    since: datetime | None


def up(settings: Settings, report: Report, *, needed_free_bytes: int = NEEDED_FREE_BYTES) -> None:
    """Bring up what is missing; what runs and answers is left alone. Data of an earlier stack is kept.

    Raises SettingsError for what is missing on this machine and for a service that does not get healthy.
    """
    home = Home(settings.home)
    home.make()
    with home.locked(report):
        ports = home.ports()
        if not home.known_credentials().prefect:
            # What runs was started by an earlier version, which asked nobody who calls.
            _end_all(settings, home, report)
        credentials = home.credentials()
        start = Start(home, services(settings, ports, credentials), report)
        start.prepare(needed_free_bytes)
        client = client_environment(ports, credentials)
        # Prefect takes the longest, so everything that does not need it starts meanwhile.
        s3, prefect = start.ensure("s3"), start.ensure("prefect")
        start.wait(s3)
        url, key, secret = client["AWS_ENDPOINT_URL_S3"], credentials.access_key, credentials.secret_key
        seaweedfs.wait_ready(url, key, secret, log=home.log("s3"))
        seaweedfs.create_bucket(url, key, secret, BUCKET)
        for service in [start.ensure("node"), start.ensure("gateway")]:
            start.wait(service)
        start.wait(prefect)
        register(settings, client["PREFECT_API_URL"], service_environment(settings, ports, credentials))
        for worker in [start.ensure(name) for name in WORKERS]:
            start.wait(worker)
        background.write_private(home.environment_file, client)


def down(settings: Settings, report: Report) -> None:
    """End every process of the stack, also a killed one's children. Data, ports and credentials stay."""
    home = Home(settings.home)
    if not home.folder.exists():
        return
    with home.locked(report):
        _end_all(settings, home, report)


def status(settings: Settings) -> tuple[ServiceStatus, ...]:
    """Every service of the stack, also if no stack was ever started. Starts nothing."""
    home = Home(settings.home)
    known = _known_services(settings, home)
    if not known:
        return tuple(ServiceStatus(name, "stopped", None, "", home.log(name), None) for name in NAMES)
    return tuple(_status(home, service) for service in known)


def environment(settings: Settings) -> dict[str, str]:
    """The variables with which clients reach the stack. Raises SettingsError if it is not up."""
    try:
        return json.loads(Home(settings.home).environment_file.read_text())
    except FileNotFoundError:
        raise SettingsError(
            f"no stack is up in {settings.home}", hint="start it: enginehouse up", code="stack-down"
        ) from None


def _end_all(settings: Settings, home: Home, report: Report) -> None:
    home.environment_file.unlink(missing_ok=True)
    for service in reversed(_known_services(settings, home)):
        process = home.find(service.name)
        if process is not None:
            terminate(process.pid, service.stop_s)
            report(f"{service.name} is stopped")
        home.record(service.name).unlink(missing_ok=True)
    background.end_members(home.folder, grace_s=5)


def _known_services(settings: Settings, home: Home) -> list[Service]:
    if not (known := home.known_ports()):
        return []
    # An earlier version had fewer services: what has no port yet was never started.
    ports = {**dict.fromkeys(PORT_NAMES, 0), **known}
    return list(services(settings, ports, home.known_credentials()).values())


def _status(home: Home, service: Service) -> ServiceStatus:
    log, process = home.log(service.name), home.find(service.name)
    if process is None:
        return ServiceStatus(service.name, "stopped", None, service.address, log, None)
    since = created(process)
    state = "running" if service.is_healthy(since) else "unhealthy"
    return ServiceStatus(service.name, state, process.pid, service.address, log, since)
