"""A running `enginehouse gateway` under clients that want it to end: others are answered, and its memory is bounded."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from infra.processes.sessions import free_ports, terminate
from infra.settings import CHECKOUT
from tests.deployments.gateway.house import MODEL, house, until
from tests.deployments.gateway.test_serve import command, status
from tests.deployments.gateway.test_state import report
from tests.fleet import Fleet

pytestmark = pytest.mark.slow

_SECONDS = 3.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Attacked:
    """A gateway's process before a stand-in of a node."""

    process: psutil.Process
    http: int
    grpc: int

    def probe(self, seconds: float) -> tuple[float, float, int]:
        """Ask for short answers one after the other: median and 99th percentile in seconds, and their number."""
        taken: list[float] = []
        body = {"text_input": "hello", "max_tokens": 4}
        end = time.monotonic() + seconds
        with httpx.Client(base_url=f"http://127.0.0.1:{self.http}", timeout=20, trust_env=False) as client:
            while time.monotonic() < end:
                began = time.monotonic()
                answer = client.post(f"/v2/models/{MODEL}/generate", json=body)
                taken.append(time.monotonic() - began)
                assert answer.status_code == 200, answer.text
        taken.sort()
        return taken[len(taken) // 2], taken[int(len(taken) * 0.99)], len(taken)

    @contextlib.contextmanager
    def watched(self) -> Generator[list[int]]:
        """The gateway's memory in bytes, from before on."""
        seen = [self.process.memory_info().rss]
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.05):
                seen.append(self.process.memory_info().rss)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield seen
        finally:
            stop.set()
            looking.join()


@pytest.fixture
def attacked(fleet: Fleet, tmp_path: Path) -> Iterator[Attacked]:
    fleet.release(fleet.rebuild(MODEL))
    (grpc,) = free_ports(1)
    more = {"ENGINEHOUSE_GATEWAY_GRPC": f"127.0.0.1:{grpc}"}
    with house() as nodes, command(fleet, tmp_path, **more) as (process, port, log):
        one = nodes.add_node("one")
        report(fleet.target, "one", {MODEL: (1, {1: "ready"})}, one.port)
        until(lambda: status(port, "/ready") == 200, "ready gateway", 30)
        heartbeat = threading.Event()

        def live() -> None:
            while not heartbeat.wait(5):
                report(fleet.target, "one", {MODEL: (1, {1: "ready"})}, one.port)

        living = threading.Thread(target=live)
        living.start()
        try:
            yield Attacked(psutil.Process(process.pid), port, grpc)
        finally:
            heartbeat.set()
            living.join()
        assert process.poll() is None, "it lives"
        assert "Traceback" not in log.read_text()


def test_others_are_answered_meanwhile_and_memory_is_bounded(attacked: Attacked) -> None:
    attacked.probe(0.5)
    print()
    for what in ("heads", "bodies", "chunks", "large", "idle", "mute"):
        p50, p99, _ = attacked.probe(0.7)
        with attacked.watched() as memory:
            arguments = [sys.executable, "-m", "tests.deployments.gateway.hostile_clients", what]
            arguments += [str(attacked.http), str(attacked.grpc), str(_SECONDS)]
            clients = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=CHECKOUT, start_new_session=True)
            try:
                time.sleep(1.0)
                hit_p50, hit_p99, answered = attacked.probe(_SECONDS - 1)
                connections = int(clients.communicate(timeout=60)[0])
            finally:
                terminate(clients, 0)
        print(
            f"{what:7} {connections:5} connections; a short answer: p50 {p50 * 1000:.1f} ms before,"
            f" {hit_p50 * 1000:.1f} during; p99 {p99 * 1000:.0f} before, {hit_p99 * 1000:.0f} during ({answered});"
            f" memory {memory[0] // _MIB} MiB before, {max(memory) // _MIB} at most"
        )
        # On a machine whose other processes take their share too, twice as much says nothing yet.
        assert hit_p50 < 5 * p50 + 0.1 and hit_p99 < 20 * p50 + 5.0
        assert max(memory) - memory[0] < 256 * _MIB
