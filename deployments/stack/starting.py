"""Bringing up the services of a stack: each is found running or started, and then waited for."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from deployments.stack.home import Home, Report
from deployments.stack.services import Service
from infra.errors import SettingsError
from infra.processes import background
from infra.processes.sessions import terminate
from infra.triton import wheel as triton

# A service that runs but does not answer gets this long, beyond its first start, before it is replaced.
_SECOND_CHANCE_S = 5.0
_POLL_S = 0.1
# A killed process holds its ports a moment longer than its pid, and then looks like a stranger's.
_DYING_S = 2.0


def created(process: psutil.Process) -> datetime:
    return datetime.fromtimestamp(process.create_time(), UTC)


def service_failed(what: str, log: Path) -> SettingsError:
    return SettingsError(
        f"{what}; its log ends with:\n{background.tail(log)}", hint=f"read {log}", code="service-failed"
    )


@dataclass
class Running:
    """A service that runs; `child` if this program has started it. It must be healthy by `deadline`."""

    service: Service
    process: psutil.Process
    child: subprocess.Popen[bytes] | None
    deadline: float


class Start:
    """The services of one `up`, each found or started once."""

    def __init__(self, home: Home, services: Mapping[str, Service], report: Report) -> None:
        self._home = home
        self._services = services
        self._report = report

    def prepare(self, needed_free_bytes: int) -> None:
        """End what killed services have left on their ports. Raises SettingsError if this machine lacks something."""
        missing = [service for service in self._services.values() if self._home.find(service.name) is None]
        if not missing:
            return
        triton.locate()
        _require_openmp()
        free = shutil.disk_usage(self._home.folder).free
        if free < needed_free_bytes:
            raise SettingsError(
                f"only {free / 2**30:.1f} GiB are free for {self._home.folder}; the stack needs "
                f"{needed_free_bytes / 2**30:.1f} GiB",
                hint="free some space, or set ENGINEHOUSE_HOME to a folder on another disk",
                code="disk-space",
            )
        for service in missing:
            self._clear_ports(service)

    def ensure(self, name: str) -> Running:
        """The service as it is found running, or started now; `wait` finds out whether it works."""
        service = self._services[name]
        process = self._home.find(name)
        if process is None:
            return self._start(service)
        age = time.time() - process.create_time()
        patience = max(service.start_s - age, _SECOND_CHANCE_S)
        return Running(service, process, None, time.monotonic() + patience)

    def wait(self, running: Running) -> None:
        """Return once the service is healthy. One that was found running and unhealthy is replaced, once.

        Raises SettingsError with the end of its log when it ends or does not get healthy in time.
        """
        service = running.service
        while not service.is_healthy(created(running.process)):
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
            raise service_failed(what, self._home.log(service.name))
        found = "is running" if running.child else "was running"
        self._report(f"{service.name} {found}: {service.address}")
        return None

    def _start(self, service: Service) -> Running:
        log = self._home.log(service.name)
        background.rotate(log)
        child = service.launch(log)
        background.remember(self._home.record(service.name), child.pid, service.ports)
        background.reap(child)
        return Running(service, psutil.Process(child.pid), child, time.monotonic() + service.start_s)

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
                hint=f"end that process, or remove '{names[port]}' from {self._home.ports_file} to have "
                "another port chosen; then: enginehouse up",
                code="port-taken",
            )

    def _strangers(self, service: Service) -> list[tuple[int, str]]:
        """Who else is on the service's ports, by port. Ends what an earlier process of it has left on them."""
        strangers: list[tuple[int, str]] = []
        for port, owner in background.taken(service.ports.values()).items():
            if owner is None or not background.belongs(owner, self._home.folder):
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
