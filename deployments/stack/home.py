"""The folder of an embedded stack, `settings.home`: what the stack remembers from one `up` to the next.

lock              held while `up` or `down` works
ports.json        chosen once, so that a stack that comes back has its old addresses
credentials.json  made once (mode 0600)
environment.json  the variables for clients; it exists exactly while the stack is up
services/         one record for each process
logs/             one log for each service
s3/, prefect/     data; the node keeps its own folder
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from deployments.stack.services import PORT_NAMES, Credentials
from infra.processes import background
from infra.processes.sessions import free_ports
from infra.settings import stack_environment_file

Report = Callable[[str], None]
"""Called with one line for a person whenever something has happened."""


@dataclass(frozen=True)
class Home:
    folder: Path

    def make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("logs", "services"):
            (self.folder / name).mkdir(exist_ok=True)

    @contextmanager
    def locked(self, report: Report) -> Generator[None]:
        """Keep out every other `up` and `down`."""
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report("waiting for another `up` or `down` to finish")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def environment_file(self) -> Path:
        return stack_environment_file(self.folder)

    @property
    def ports_file(self) -> Path:
        return self.folder / "ports.json"

    def known_ports(self) -> dict[str, int]:
        """The port of each service by name; empty if no stack was ever started."""
        try:
            return json.loads(self.ports_file.read_text())
        except FileNotFoundError:
            return {}

    def ports(self) -> dict[str, int]:
        """The same, with free ports for the services that have none yet."""
        ports = self.known_ports()
        absent = [name for name in PORT_NAMES if name not in ports]
        if absent:
            ports |= zip(absent, free_ports(len(absent)), strict=True)
            background.write_private(self.ports_file, ports)
        return ports

    @property
    def _credentials_file(self) -> Path:
        return self.folder / "credentials.json"

    def known_credentials(self) -> Credentials:
        """What the home has; an earlier version made none for Prefect."""
        try:
            return Credentials(**json.loads(self._credentials_file.read_text()))
        except FileNotFoundError:
            return Credentials()

    def credentials(self) -> Credentials:
        """The same, with fresh ones for what has none yet."""
        known = self.known_credentials()
        complete = Credentials(
            access_key=known.access_key or secrets.token_hex(10).upper(),
            secret_key=known.secret_key or secrets.token_urlsafe(30),
            prefect=known.prefect or f"enginehouse:{secrets.token_urlsafe(30)}",
        )
        if complete != known:
            background.write_private(self._credentials_file, asdict(complete))
        return complete

    def log(self, service: str) -> Path:
        return self.folder / "logs" / f"{service}.log"

    def record(self, service: str) -> Path:
        return self.folder / "services" / f"{service}.json"

    def find(self, service: str) -> psutil.Process | None:
        """The process of a service; None if it does not run."""
        return background.find(self.record(service), self.folder)
