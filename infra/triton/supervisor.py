"""Keeps a Triton running: starts it, restarts it when it dies, and finds it again after its own process was killed.

A Triton is one process, or a group with one process for each rank of an engine on several GPUs.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

import psutil

from infra.errors import TritonError
from infra.processes.sessions import terminate
from infra.triton.client import LOAD_TIMEOUT_S, TritonClient
from infra.triton.command import EXIT_TIMEOUT_S, Group, Ports, key_of, serves
from infra.triton.log import Log
from infra.triton.server import start_server

# The image's libraries, gigabytes of them, may come from a cold disk.
_READY_SECONDS = 120.0
_POLL_SECONDS = 0.05
_CONTROL_SECONDS = 10.0
"""How long a live Triton may take for what needs no model; loads and unloads have times of their own."""
STOP_GRACE_S = EXIT_TIMEOUT_S + 5.0
"""How long an ending Triton lives at most: it ends by itself once running requests have had their time."""
NODE_GRACE_S = STOP_GRACE_S + 20.0
"""What a service manager has to grant a node between SIGTERM and SIGKILL: its Triton ends first."""

_log = logging.getLogger("enginehouse.triton")


class Ensured(Enum):
    """What `ensure` had to do."""

    NONE = auto()
    STARTED = auto()
    """A new Triton, which holds nothing."""
    FOUND = auto()
    """A Triton that an earlier supervisor left, with whatever it holds."""


class Supervisor:
    """One Triton. `models` is its repository, `folder` holds its log and its models' interpreter.

    A Triton that an earlier supervisor has left is found by its command line, which has the repository and the key: no
    file has to be written for that, and no clock is asked.

    `root`, `orchestrated_gpus` and `group` are those of `server.start_server`. One thread may call `ensure` while
    another calls `stop`.
    """

    def __init__(
        self,
        folder: Path,
        models: Path,
        ports: Ports,
        *,
        root: Path | None = None,
        orchestrated_gpus: int = 0,
        group: Group | None = None,
    ) -> None:
        self._folder = folder
        self._models = models
        self._ports = ports
        self._root = root
        self._orchestrated_gpus = orchestrated_gpus
        self._group = group
        self._ranks = 1 if group is None else 1 + len(group.others)
        self.log = Log(folder / "triton.log")
        self._process: psutil.Process | None = None
        """The leader of the session: Triton, or the mpirun above it."""
        self._servers: tuple[psutil.Process, ...] = ()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.client = self._new_client("")

    @property
    def pid(self) -> int:
        """The pid of Triton, of the first rank in a group; 0 if none runs."""
        return self._servers[0].pid if self._servers else 0

    @property
    def alive(self) -> bool:
        """Whether Triton runs; in a group every rank must, since the others answer nothing without it."""
        process, servers = self._process, self._servers
        return process is not None and len(servers) == self._ranks and all(map(_alive, (process, *servers)))

    def ensure(self) -> Ensured:
        """Find or start a live Triton. Raises TritonError if it does not start, SettingsError if parts are missing."""
        with self._lock:
            if self.alive:
                return Ensured.NONE
            if self._stopped.is_set():
                raise TritonError("Triton was ended", code="triton-start")
            known, self._process, self._servers = self._process, None, ()
            if known is None and self._find():
                return Ensured.FOUND
            if known is not None:
                _log.warning("Triton (pid %d) is gone; starting it again", known.pid)
                terminate(known.pid, grace_s=2)  # its Python stubs outlive it for a while and hold memory
            self._start()
            return Ensured.STARTED

    def find(self) -> bool:
        """Take over the live Triton that an earlier supervisor has left. Returns whether there is one."""
        with self._lock:
            return self._find()

    def kill(self) -> None:
        """End a Triton that hangs, at once: the next `ensure` starts another."""
        with self._lock:
            if self._process is not None:
                terminate(self._process.pid, grace_s=0.5)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End Triton and its models' processes for good, also one that an earlier supervisor has left."""
        self._stopped.set()
        with self._lock:
            if self._process is None:
                self._find()
            if self._process is not None:
                terminate(self._process.pid, grace_s)
            self._process, self._servers = None, ()

    def _find(self) -> bool:
        left = [process for process in psutil.process_iter() if serves(_arguments(process), self._models)]
        # Triton is below mpirun, and a child of Triton is Triton for a moment before it becomes a model's process.
        leaders = [process for process in left if not set(_parents(process)) & set(left)]
        if not leaders:
            return False
        # One that leads no session has lost its mpirun, as have several.
        leader = leaders[0]
        self._process, self._servers = leader, _servers(leader)
        self.client = self._new_client(key_of(_arguments(leader)))
        if os.getsid(leader.pid) != leader.pid or len(leaders) > 1 or not self.alive or not self._answers():
            self._process, self._servers = None, ()
            for process in left:
                # Triton outlives a killed mpirun, which led the session, and keeps its ports.
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    terminate(os.getsid(process.pid), grace_s=5)
            return False
        _log.info("found Triton again (pid %d)", self.pid)
        return True

    def _answers(self) -> bool:
        """Whether the Triton of our key answers: another one on its ports knows another key."""
        try:
            self.client.index()
        except TritonError:
            return False
        return True

    def _start(self) -> None:
        key = secrets.token_urlsafe(32)
        work = self._folder / "triton"
        work.mkdir(parents=True, exist_ok=True)
        process = start_server(
            self._models,
            work,
            self.log.path,
            ports=self._ports,
            control_key=key,
            root=self._root,
            orchestrated_gpus=self._orchestrated_gpus,
            group=self._group,
        )
        started = psutil.Process(process.pid)
        self.client = client = self._new_client(key)
        deadline = time.monotonic() + (_READY_SECONDS if self._group is None else LOAD_TIMEOUT_S)
        while not client.live():
            if process.poll() is not None or time.monotonic() > deadline or self._stopped.is_set():
                terminate(process, grace_s=2)
                raise TritonError("Triton did not start", hint=f"see {self.log.path}", code="triton-start")
            time.sleep(_POLL_SECONDS)
        if not self._answers():
            terminate(process, grace_s=2)
            raise TritonError(
                f"another server answers on port {self._ports.http}",
                hint="end it, or give this node other ports",
                code="triton-port-taken",
            )
        self._process, self._servers = started, _servers(started)
        _log.info("Triton runs (pid %d)", self.pid)

    def _new_client(self, key: str) -> TritonClient:
        return TritonClient(
            f"127.0.0.1:{self._ports.http}", grpc=f"127.0.0.1:{self._ports.grpc}", key=key, timeout_s=_CONTROL_SECONDS
        )


def _servers(leader: psutil.Process) -> tuple[psutil.Process, ...]:
    """The processes of Triton itself: mpirun notices their end only seconds later."""
    if leader.name() == "tritonserver":
        return (leader,)
    below = [child for child in leader.children(recursive=True) if child.name() == "tritonserver"]
    # A child of Triton has the same name for a moment, before it becomes the process of a model.
    pids = {child.pid for child in below}
    return tuple(child for child in below if child.ppid() not in pids)


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.Error:
        return []


def _arguments(process: psutil.Process) -> Sequence[str]:
    """The command line; empty for a process that has ended, or belongs to somebody else."""
    try:
        return process.cmdline()
    except psutil.Error:
        return ()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
