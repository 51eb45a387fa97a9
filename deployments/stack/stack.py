"""The embedded stack of `enginehouse up`: S3, Prefect with two workers, and a node with its Triton.

Its whole state lies under `settings.home`:

    lock              held while `up` or `down` works
    ports.json        chosen once, so that a stack that comes back has its old addresses
    credentials.json  made once
    environment.json  the variables for clients; there exactly while the stack is up
    services/         one record for each process
    logs/             one log for each service
    s3/, prefect/     data; the node keeps its own folder
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from deployments.prefect_server.register import sources_digest, wanted_by
from deployments.stack.services import (
    BUCKET,
    NAMES,
    PORT_NAMES,
    WORKERS,
    Credentials,
    Service,
    client_environment,
    fetch_json,
    service_environment,
    services,
)
from infra.errors import SettingsError
from infra.processes import background, sessions
from infra.processes.sessions import free_ports, terminate
from infra.s3 import seaweedfs
from infra.settings import Settings, stack_environment_file
from infra.triton import wheel as triton

Report = Callable[[str], None]
"""Called with one line for a person whenever something has happened."""

NEEDED_FREE_BYTES = 3 << 29
"""1.5 GiB: the embedded model as fetched, converted and built, twice (workspace and store), with releases."""

_REGISTER_MODULE = "deployments.prefect_server.register"
_REGISTER_TIMEOUT_S = 120.0
# A service that runs but does not answer gets this long, beyond its first start, before it is replaced.
_SECOND_CHANCE_S = 5.0
_POLL_S = 0.1
# A killed process holds its ports a moment longer than its pid, and then looks like nobody of ours.
_DYING_S = 2.0


@dataclass(frozen=True)
class ServiceStatus:
    """What `status` knows of one service. `pid` and `since` are None where it is stopped."""

    name: str
    state: Literal["running", "stopped", "unhealthy"]
    pid: int | None
    address: str
    log: Path
    since: datetime | None


def up(settings: Settings, report: Report) -> None:
    """Bring up what is missing; what runs and answers is left alone. Data of an earlier stack is kept.

    Raises SettingsError for what is missing on this machine and for a service that does not get healthy.
    """
    home = settings.home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(home, report):
        (home / "logs").mkdir(exist_ok=True)
        (home / "services").mkdir(exist_ok=True)
        ports, credentials = _ports(home), _credentials(home)
        stack = _Stack(settings, services(settings, ports, credentials), report)
        stack.prepare()
        client = client_environment(ports, credentials)
        # Prefect takes the longest, so everything that does not need it starts meanwhile.
        s3, prefect = stack.ensure("s3"), stack.ensure("prefect")
        stack.wait(s3)
        url, key, secret = client["AWS_ENDPOINT_URL_S3"], credentials.access_key, credentials.secret_key
        seaweedfs.wait_ready(url, key, secret, log=stack.log("s3"))
        seaweedfs.create_bucket(url, key, secret, BUCKET)
        stack.wait(stack.ensure("node"))
        stack.wait(prefect)
        _register(settings, client["PREFECT_API_URL"], service_environment(settings, ports, credentials))
        for worker in [stack.ensure(name) for name in WORKERS]:
            stack.wait(worker)
        background.write_private(stack_environment_file(home), client)


def down(settings: Settings, report: Report) -> None:
    """End every process of the stack, also a killed one's children. Data, ports and credentials stay."""
    home = settings.home
    if not home.exists():
        return
    with _lock(home, report):
        stack_environment_file(home).unlink(missing_ok=True)
        ports = _kept_ports(home)
        known = services(settings, ports, _credentials(home)) if ports else {}
        for service in reversed(known.values()):
            record = _record(home, service.name)
            process = background.find(record, home)
            if process is not None:
                terminate(process.pid, service.stop_s)
                report(f"{service.name} is stopped")
            record.unlink(missing_ok=True)
        background.end_members(home, grace_s=5)


def status(settings: Settings) -> tuple[ServiceStatus, ...]:
    """Every service of the stack, also where there is none. Imports no Prefect and starts nothing."""
    home = settings.home
    ports = _kept_ports(home)
    if not ports:
        return tuple(ServiceStatus(name, "stopped", None, "", _log(home, name), None) for name in NAMES)
    return tuple(_status(home, service) for service in services(settings, ports, _credentials(home)).values())


def environment(settings: Settings) -> dict[str, str]:
    """The variables with which clients reach the stack. Raises SettingsError where it is not up."""
    try:
        return json.loads(stack_environment_file(settings.home).read_text())
    except FileNotFoundError:
        raise SettingsError(
            f"no stack is up in {settings.home}", hint="start it: enginehouse up", code="stack-down"
        ) from None


@dataclass
class _Running:
    """A service that runs; `child` where this program has started it."""

    service: Service
    process: psutil.Process
    child: subprocess.Popen[bytes] | None
    deadline: float

    @property
    def created(self) -> datetime:
        return _created(self.process)


class _Stack:
    """The services of one `up`, each found or started once."""

    def __init__(self, settings: Settings, known: Mapping[str, Service], report: Report) -> None:
        self._home = settings.home
        self._services = known
        self._report = report

    def log(self, name: str) -> Path:
        return _log(self._home, name)

    def prepare(self) -> None:
        """Refuse before anything is started, and end what a killed service has left on its ports."""
        missing = [service for service in self._services.values() if self._find(service.name) is None]
        if not missing:
            return
        triton.locate()
        _require_openmp()
        free = shutil.disk_usage(self._home).free
        if free < NEEDED_FREE_BYTES:
            raise SettingsError(
                f"only {free / 2**30:.1f} GiB are free for {self._home}; the stack needs "
                f"{NEEDED_FREE_BYTES / 2**30:.1f} GiB",
                hint="free some space, or set ENGINEHOUSE_HOME to a folder on another disk",
                code="disk-space",
            )
        for service in missing:
            self._clear_ports(service)

    def ensure(self, name: str) -> _Running:
        """The service as it is found running, or started now; `wait` tells whether it works."""
        service = self._services[name]
        process = self._find(name)
        if process is None:
            return self._start(service)
        age = time.time() - process.create_time()
        patience = max(service.start_s - age, _SECOND_CHANCE_S)
        return _Running(service, process, None, time.monotonic() + patience)

    def wait(self, running: _Running) -> None:
        """Return once the service is healthy. One that was found sick is replaced, once.

        Raises SettingsError with the end of its log when it ends or does not get healthy in time.
        """
        service = running.service
        while not service.is_healthy(running.created):
            if not running.process.is_running() or (running.child and running.child.returncode is not None):
                what = f"{service.name} ended while it started"
            elif time.monotonic() > running.deadline:
                what = f"{service.name} did not answer within {service.start_s:g} s"
            else:
                time.sleep(_POLL_S)
                continue
            terminate(running.process.pid, service.stop_s)
            if running.child is None:
                self._report(f"{service.name} ran but did not answer: starting it again")
                self._clear_ports(service)
                return self.wait(self._start(service))
            raise _service_failed(what, self.log(service.name))
        found = "is running" if running.child else "was running"
        self._report(f"{service.name} {found}: {service.address}")
        return None

    def _find(self, name: str) -> psutil.Process | None:
        return background.find(_record(self._home, name), self._home)

    def _start(self, service: Service) -> _Running:
        log = self.log(service.name)
        background.rotate(log)
        child = service.launch(log)
        background.remember(_record(self._home, service.name), child.pid, service.ports)
        background.reap(child)
        return _Running(service, psutil.Process(child.pid), child, time.monotonic() + service.start_s)

    def _clear_ports(self, service: Service) -> None:
        names = {port: name for name, port in service.ports.items()}
        deadline = time.monotonic() + _DYING_S
        while strangers := self._strangers(service):
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            port, who = strangers[0]
            raise SettingsError(
                f"port {port}, kept for {service.name} ({names[port]}), is in use by {who}",
                hint=f"end that process, or remove '{names[port]}' from {self._home / 'ports.json'} to have "
                "another port chosen; then: enginehouse up",
                code="port-taken",
            )

    def _strangers(self, service: Service) -> list[tuple[int, str]]:
        """Who else is on the service's ports, by port. Ends what an earlier process of it has left there."""
        strangers: list[tuple[int, str]] = []
        for port, owner in background.taken(service.ports.values()).items():
            if owner is None or not background.belongs(owner, self._home):
                strangers.append((port, background.describe(owner)))
            elif not service.adopts_leftovers:
                self._report(f"ending process {owner.pid}, which an earlier {service.name} has left")
                terminate(owner.pid, service.stop_s)
        return strangers


def _require_openmp() -> None:
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        raise SettingsError(
            "the OpenMP library libgomp.so.1, which llama.cpp needs, is missing on this machine",
            hint="on Debian and Ubuntu: apt-get install libgomp1",
            code="library-missing",
        ) from None


@contextmanager
def _lock(home: Path, report: Report) -> Generator[None]:
    with (home / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another `up` or `down` to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _kept_ports(home: Path) -> dict[str, int]:
    try:
        return json.loads((home / "ports.json").read_text())
    except FileNotFoundError:
        return {}


def _ports(home: Path) -> dict[str, int]:
    ports = _kept_ports(home)
    absent = [name for name in PORT_NAMES if name not in ports]
    if absent:
        ports |= zip(absent, free_ports(len(absent)), strict=True)
        background.write_private(home / "ports.json", ports)
    return ports


def _credentials(home: Path) -> Credentials:
    path = home / "credentials.json"
    if not path.exists():
        fresh = {"access_key": secrets.token_hex(10).upper(), "secret_key": secrets.token_urlsafe(30)}
        background.write_private(path, fresh)
    return Credentials(**json.loads(path.read_text()))


def _register(settings: Settings, api: str, environment: Mapping[str, str]) -> None:
    """Register what is wanted of Prefect, unless the server has it as these sources and settings make it."""
    home, wanted = settings.home, wanted_by(settings)
    record, digest = home / "services" / "registered", sources_digest(wanted)
    needed = [f"{api}/work_pools/{pool.name}" for pool in wanted.pools]
    needed += [f"{api}/deployments/name/{each.full_name}" for each in wanted.deployments]
    if record.exists() and record.read_text() == digest and all(fetch_json(url) for url in needed):
        return
    log = _log(home, "register")
    background.rotate(log)
    command = (sys.executable, "-P", "-m", _REGISTER_MODULE)
    child = sessions.start_session(command, log=log, folder=home, environment=environment)
    try:
        child.wait(_REGISTER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        terminate(child, 5)
    if child.returncode != 0:
        raise _service_failed("the flows could not be registered with Prefect", log)
    record.write_text(digest)


def _service_failed(what: str, log: Path) -> SettingsError:
    return SettingsError(
        f"{what}; its log ends with:\n{background.tail(log)}", hint=f"read {log}", code="service-failed"
    )


def _status(home: Path, service: Service) -> ServiceStatus:
    log, process = _log(home, service.name), background.find(_record(home, service.name), home)
    if process is None:
        return ServiceStatus(service.name, "stopped", None, service.address, log, None)
    since = _created(process)
    state = "running" if service.is_healthy(since) else "unhealthy"
    return ServiceStatus(service.name, state, process.pid, service.address, log, since)


def _created(process: psutil.Process) -> datetime:
    return datetime.fromtimestamp(process.create_time(), UTC)


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _record(home: Path, name: str) -> Path:
    return home / "services" / f"{name}.json"
