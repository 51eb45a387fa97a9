"""Keeps one Triton running: starts it, starts it again when it dies, finds it again when its keeper was killed."""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from enum import Enum, auto
from pathlib import Path
from typing import Any

import psutil

from infra.background import write_private
from infra.errors import TritonError
from infra.processes import terminate
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.log import Log
from infra.triton.server import launch

# The image's libraries, gigabytes of them, may come from a cold disk.
_READY_SECONDS = 120.0
_POLL_SECONDS = 0.05
# Engines on the CPU share cores with each other and with builds. Threads that spin while they wait then halt one
# another: 64 tokens beside two busy processes on 2 cores ran at 1 to 2 tokens/s spinning, at 23 to 60 waiting. Alone,
# waiting costs about a third (95 to 150 against 80 to 85).
_OPENMP_WAIT = "PASSIVE"

_log = logging.getLogger("enginehouse.triton")


class Change(Enum):
    """What `ensure` had to do."""

    NONE = auto()
    STARTED = auto()
    """A new Triton, which holds nothing."""
    FOUND = auto()
    """One that an earlier keeper left, with whatever it holds."""


class Supervisor:
    """The Triton of one node. `models` is its repository, `folder` holds its log, its models' interpreter and its key.

    `root` and `orchestrated_gpus` are those of `infra.triton.server.launch`.
    """

    def __init__(
        self, folder: Path, models: Path, ports: Ports, *, root: Path | None = None, orchestrated_gpus: int = 0
    ) -> None:
        self._folder = folder
        self._models = models
        self._ports = ports
        self._root = root
        self._orchestrated_gpus = orchestrated_gpus
        self.log = Log(folder / "triton.log")
        self._process: psutil.Process | None = None
        """Leads the session: Triton, or the mpirun above it."""
        self._server: psutil.Process | None = None
        self.client = self._new_client("")

    @property
    def pid(self) -> int:
        """Triton's own; 0 where none runs."""
        return 0 if self._server is None else self._server.pid

    def ensure(self) -> Change:
        """Have a live Triton. Raises TritonError where it does not start, SettingsError where parts are missing."""
        known = self._process
        if known is not None and self._server is not None and _alive(known) and _alive(self._server):
            return Change.NONE
        self._process = self._server = None
        if known is None and self._find():
            return Change.FOUND
        if known is not None:
            _log.warning("Triton (pid %d) is gone; starting it again", known.pid)
            terminate(known.pid, grace_s=2)  # its Python stubs outlive it for a while and hold memory
        self._start()
        return Change.STARTED

    def stop(self) -> None:
        """End Triton and its models' processes."""
        if self._process is not None:
            terminate(self._process.pid, grace_s=15)
            self._record.unlink(missing_ok=True)

    @property
    def _record(self) -> Path:
        return self._folder / "triton.json"

    def _find(self) -> bool:
        if not self._record.exists():
            return False
        record: dict[str, Any] = json.loads(self._record.read_text())
        try:
            process = psutil.Process(record["pid"])
        except psutil.NoSuchProcess:
            terminate(record["pid"], grace_s=2)  # Triton outlives a killed mpirun, and keeps its ports
            return False
        if abs(process.create_time() - record["created"]) > 1:
            return False
        client = self._new_client(record["key"])
        if not _alive(process) or not client.live():
            terminate(process.pid, grace_s=5)
            return False
        self._process, self._server, self.client = process, _server(process), client
        _log.info("found Triton again (pid %d)", self.pid)
        return True

    def _start(self) -> None:
        key = secrets.token_urlsafe(32)
        work = self._folder / "triton"
        work.mkdir(parents=True, exist_ok=True)
        process = launch(
            self._models,
            work,
            self.log.path,
            ports=self._ports,
            control_key=key,
            root=self._root,
            orchestrated_gpus=self._orchestrated_gpus,
            environment={"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", _OPENMP_WAIT)},
        )
        client = self._new_client(key)
        deadline = time.monotonic() + _READY_SECONDS
        while not client.live():
            if process.poll() is not None or time.monotonic() > deadline:
                terminate(process, grace_s=2)
                raise TritonError("Triton did not start", hint=f"see {self.log.path}", code="triton-start")
            time.sleep(_POLL_SECONDS)
        self._process, self.client = psutil.Process(process.pid), client
        self._server = _server(self._process)
        write_private(self._record, {"pid": process.pid, "created": self._process.create_time(), "key": key})
        _log.info("Triton runs (pid %d)", self.pid)

    def _new_client(self, key: str) -> TritonClient:
        return TritonClient(f"127.0.0.1:{self._ports.http}", key=key)


def _server(leader: psutil.Process) -> psutil.Process:
    """Triton itself: mpirun takes seconds to see that it died, and outlives it for as long."""
    return next((child for child in leader.children(recursive=True) if child.name() == "tritonserver"), leader)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
