"""A real node agent in this process, whose Triton only records which models it is asked to load."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deployments.node.agent import Node
from deployments.node.facts import Facts
from infra.triton.client import Completion, Counts, ModelState, Request, TritonClient
from infra.triton.command import Ports
from infra.triton.log import Log
from infra.triton.supervisor import Ensured

if TYPE_CHECKING:
    from tests.fleet import Fleet


class RecordingTriton(TritonClient):
    """A Triton that records which models it was asked to load."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:9")
        self.loads: list[str] = []

    def index(self) -> tuple[ModelState, ...]:
        return ()

    def load(self, model: str, timeout_s: float = 0.0) -> None:
        self.loads.append(model)

    def ready(self, model: str) -> bool:
        return model in self.loads

    def live(self) -> bool:
        return True

    def generate(self, model: str, request: Request) -> Completion:
        return Completion("a", (), 0.0)

    def counts(self, model: str) -> Counts:
        return Counts(0, 0)

    def unload(self, model: str) -> None:
        return


class Started:
    """Takes the supervisor's place: a Triton that has started and stays."""

    def __init__(self, client: RecordingTriton, folder: Path) -> None:
        self.client, self.pid, self.alive = client, os.getpid(), False
        self.log = Log(folder / "triton.log")

    def ensure(self) -> Ensured:
        self.alive = True
        return Ensured.STARTED

    def stop(self) -> None:
        return


@contextmanager
def running_node(
    fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch, key: str = ""
) -> Generator[RecordingTriton]:
    triton, stop = RecordingTriton(), threading.Event()
    monkeypatch.setattr("deployments.node.agent.Supervisor", lambda *arguments, **more: Started(triton, folder))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    ports, facts = Ports(1, 2, 3), Facts(None, None)
    node = Node("one", fleet.target, fleet.store, folder, ports, facts, key, retry_seconds=600.0)
    thread = threading.Thread(target=node.run, args=(stop,))
    thread.start()
    try:
        yield triton
    finally:
        stop.set()
        thread.join()
