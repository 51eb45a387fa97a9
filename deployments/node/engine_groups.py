"""Servers that serve one engine alone: a group of Tritons for the release, one Triton for each rank.

The ranks of a group load the engine when they start and take no control requests, so a group starts and ends with its
release. The release's other models are in the node's own Triton, which a failing engine does not take down.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from infra.errors import TritonError
from infra.files import remove_tree
from infra.processes.background import write_private
from infra.processes.sessions import free_ports
from infra.triton.command import Group, Ports
from infra.triton.supervisor import Supervisor
from tasks.triton.config import RELEASE, TENSORRT_LLM
from tasks.triton.placement import EngineServer, release_names
from tasks.trtllm.backend.load_failures import known_load_failure

_RECORD = "group.json"
_END_SECONDS = 2.0
"""Short, since the models that call the engine are unloaded before; a rank that still loads ends by SIGKILL alone."""

_log = logging.getLogger("enginehouse.node")


class EngineGroup:
    """The servers of the model `engine`, one for each entry of `ports`. All their files lie in `folder`."""

    def __init__(self, folder: Path, engine: str, ports: tuple[Ports, ...], root: Path | None) -> None:
        self._engine = engine
        self.folder = folder
        self.server = EngineServer(folder / "models", f"127.0.0.1:{ports[0].grpc}")
        self.supervisor = Supervisor(folder, self.server.models, ports[0], root=root, group=Group(engine, ports[1:]))

    def start(self) -> None:
        """Start the servers and wait for the engine. Raises TritonError, with the cause if the log has it."""
        log = self.supervisor.log
        start = log.end()
        try:
            self.supervisor.ensure()
            if not self.supervisor.client.ready(self._engine):
                raise TritonError("the engine's servers run, but it is not ready", code="triton-not-ready")
        except TritonError as error:
            output = log.since(start)
            if (known := known_load_failure(error.message, output)) is None:
                # The log is removed with the group.
                _log.warning("the log of the servers of %s ends with: %s", self._engine, output[-2000:])
                raise
            raise known from error

    def end(self) -> None:
        """End every process of the group, and remove its folder."""
        self.supervisor.stop(_END_SECONDS)
        remove_tree(self.folder)


class EngineGroups:
    """The groups of a node, also those that an earlier agent left in `folder`. May be called from any thread."""

    def __init__(self, folder: Path, root: Path | None) -> None:
        self._folder = folder
        self._root = root
        self._lock = threading.Lock()
        self._closed = False
        self._groups = {record.parent.name: _read(record, root) for record in folder.glob(f"*/{_RECORD}")}

    def of(self, model: str, release: int, ranks: int) -> EngineGroup:
        """The group of a release. A new group has ports that it keeps, and is not started yet."""
        names = release_names(model, release)
        with self._lock:
            if self._closed:
                raise TritonError("this node's Triton has ended", code="triton-unreachable", retryable=True)
            known = self._groups.get(names[RELEASE])
            return known if known is not None else self._make(names[RELEASE], names[TENSORRT_LLM], ranks)

    def lost(self, model: str, release: int) -> bool:
        """Whether the release has a group that does not run."""
        group = self._groups.get(_name(model, release))
        return group is not None and not group.supervisor.alive

    def find(self, releases: Collection[tuple[str, int]]) -> None:
        """Take over what an earlier agent started for these releases, and end what it started for others."""
        wanted = {_name(model, release) for model, release in releases}
        for name, group in list(self._groups.items()):
            if name in wanted:
                group.supervisor.find()
            else:
                self._end(name)

    def end(self, model: str, release: int) -> None:
        self._end(_name(model, release))

    def close(self) -> None:
        """End all groups; no other can be made after this."""
        with self._lock:
            self._closed = True
        for name in list(self._groups):
            self._end(name)

    def _make(self, name: str, engine: str, ranks: int) -> EngineGroup:
        numbers = free_ports(3 * ranks)
        ports = tuple(Ports(*numbers[start : start + 3]) for start in range(0, len(numbers), 3))
        made = EngineGroup(self._folder / name, engine, ports, self._root)
        made.server.models.mkdir(parents=True, exist_ok=True)
        write_private(made.folder / _RECORD, {"engine": engine, "ports": [asdict(each) for each in ports]})
        self._groups[name] = made
        return made

    def _end(self, name: str) -> None:
        with self._lock:
            group = self._groups.get(name)
        if group is not None:
            group.end()
            with self._lock:
                self._groups.pop(name, None)


def _name(model: str, release: int) -> str:
    return release_names(model, release)[RELEASE]


def _read(record: Path, root: Path | None) -> EngineGroup:
    group = json.loads(record.read_text())
    return EngineGroup(record.parent, group["engine"], tuple(Ports(**each) for each in group["ports"]), root)
