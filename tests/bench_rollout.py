"""What clients feel of a night of rollouts: 32 streams over gRPC and SSE, at Triton's own ports and at the gateway's,
while nothing moves and during 30 promotions, 10 rollbacks, 3 candidates that fail and 2 canaries.

The model is small and sends a piece every 100 ms, so what is measured is the house, not a model. Times of first tokens
are compared within this one run: a stand of half the time before the moves, and one after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

from infra.processes.sessions import free_ports, start_session, terminate
from infra.s3 import seaweedfs
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.load.arrivals import when_free
from tasks.load.clock import punctual_loop
from tasks.load.http_stream import Address, Connections
from tasks.load.measure import open_wire
from tasks.load.outcome import Outcome
from tasks.load.percentiles import needed, percentile_of
from tasks.load.prompts import Prompt
from tasks.load.send import Listeners, Load, Pace
from tasks.load.triton_grpc import TritonGrpc
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling, Wire
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.target import Target
from tests.deployments.gateway.house import until
from tests.deployments.gateway.moving import Event, Moving, events
from tests.deployments.node.served import served
from tests.fleet import Fleet

MODEL, TARGET = "tiny", "bench"
CLIENTS = 32
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "10"))
STANDING_S = float(os.environ.get("BENCH_SECONDS", "40"))
LIMIT = 1.25
"""How many times the first token's 99th percentile may be while the name moves."""
BUCKET, KEY = "bench", "bench"
_PROMPT = Prompt("count 20 0.1", 20)


@contextlib.contextmanager
def store(folder: Path) -> Generator[Fleet]:
    """A store on an S3 server of its own, whose address this process and its children have."""
    ports = dict(zip(seaweedfs.PORT_NAMES, free_ports(len(seaweedfs.PORT_NAMES)), strict=True))
    url, log = seaweedfs.endpoint_url(ports), folder / "s3.log"
    process = seaweedfs.launch(folder / "data", log, ports, KEY, KEY)
    try:
        seaweedfs.wait_ready(url, KEY, KEY, log=log, process=process)
        seaweedfs.create_bucket(url, KEY, KEY, BUCKET)
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": seaweedfs.REGION,
        }
        bucket = Bucket.at(f"s3://{BUCKET}/store")
        yield Fleet(ArtifactStore(bucket), Target(bucket, TARGET), folder / "fleet")
    finally:
        terminate(process, 10)


@contextlib.contextmanager
def gateway(fleet: Fleet) -> Generator[tuple[str, str]]:
    """A gateway in a process of its own: its URL, and its address over gRPC."""
    http, grpc = free_ports(2)
    bucket = fleet.store.bucket
    environment = os.environ | {
        "ENGINEHOUSE_HOME": str(fleet.folder.parent / "gateway"),
        "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
        "ENGINEHOUSE_TARGET": TARGET,
        "ENGINEHOUSE_GATEWAY_ADDRESS": "127.0.0.1",
        "ENGINEHOUSE_GATEWAY_HTTP": f"http://127.0.0.1:{http}",
        "ENGINEHOUSE_GATEWAY_GRPC": f"127.0.0.1:{grpc}",
    }
    command = [sys.executable, "-m", "deployments.gateway.serve"]
    process = start_session(command, log=fleet.folder.parent / "gateway.log", folder=CHECKOUT, environment=environment)
    try:
        yield f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    finally:
        terminate(process, 10)


@dataclass(frozen=True)
class Ways:
    """Where clients ask: over SSE and gRPC, at Triton's own ports and at the gateway's."""

    triton_http: str
    triton_grpc: str
    gateway_http: str
    gateway_grpc: str

    def wires(self) -> tuple[Wire, ...]:
        sse = (TritonSse(MODEL, Connections(Address.parse(url)), Sampling()) for url in self._urls)
        return (*sse, *(TritonGrpc(MODEL, each, Sampling()) for each in (self.triton_grpc, self.gateway_grpc)))

    @property
    def _urls(self) -> tuple[str, str]:
        return self.triton_http, self.gateway_http


@dataclass(frozen=True)
class Answer:
    """When a request began, in seconds of the machine's monotonic clock; its first token in ms; why it failed."""

    began: float
    first: float
    failure: str


async def ask(ways: Ways) -> list[Answer]:
    """Stream over all ways until the standard input ends."""
    outcomes: list[Outcome] = []
    listeners = Listeners(outcomes.append, lambda number, seconds: None, lambda seconds: None)
    wires = ways.wires()
    loads = [Load(wire, Pace(at_once=CLIENTS // len(wires)), listeners) for wire in wires]
    for wire in wires:
        await open_wire(wire, 60)
    print("begun", flush=True)

    async def end() -> None:
        await asyncio.to_thread(sys.stdin.read)
        for load in loads:
            load.end()

    await asyncio.gather(end(), *(load.run(when_free(repeat(_PROMPT))) for load in loads))
    for wire in wires:
        await wire.close()
    return [
        Answer(
            each.intended,
            ((each.first or each.ended) - each.intended) * 1000,
            f"{each.failure or ''} {each.message}".strip(),
        )
        for each in outcomes
    ]


@dataclass
class Clients:
    """32 clients in a process of their own."""

    process: subprocess.Popen[str]

    def answers(self) -> list[Answer]:
        """End them. Those that were in the middle of an answer are left out."""
        return [Answer(**each) for each in json.loads(self.process.communicate("")[0])]


@contextlib.contextmanager
def clients(ways: Ways) -> Generator[Clients]:
    command = [sys.executable, "-m", "tests.bench_rollout", json.dumps(asdict(ways))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield Clients(process)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as name:
        folder = Path(name)
        with store(folder) as fleet, served(fleet, folder / "node") as node, gateway(fleet) as (url, grpc):
            node.release(MODEL)
            node.wait_for(MODEL, 1)
            moving = Moving(node, url, MODEL)
            until(moving.answers, "gateway", 60)
            return measure(moving, Ways(f"http://127.0.0.1:{node.ports[0]}", f"127.0.0.1:{node.ports[1]}", url, grpc))


def alias_moves(log: str) -> list[int]:
    """How long Triton took for each move of the public name, in ms, by the log of the node."""
    return [int(ms) for ms in re.findall(rf"{MODEL} answers with release \d+; the move took (\d+) ms", log)]


def measure(moving: Moving, ways: Ways) -> int:
    happened: Counter[Event] = Counter()
    moves: list[float] = []
    with clients(ways) as asking:
        time.sleep(STANDING_S)
        began = time.monotonic()
        for event in events(ROUNDS):
            if (seconds := moving.does(event)) is not None:
                moves.append(seconds * 1000)
            happened[event] += 1
        ended = time.monotonic()
        time.sleep(STANDING_S)
        answers = asking.answers()
    phases: dict[str, list[float]] = {"standing": [], "moving": []}
    for answer in answers:
        phases["moving" if began <= answer.began <= ended else "standing"].append(answer.first)
    failed = [answer.failure for answer in answers if answer.failure]
    print(f"\n{', '.join(f'{event} {count}' for event, count in happened.items())} in {ended - began:.0f} s")
    taken = alias_moves(moving.node.log.read_text())
    print(
        f"Triton moved the name {len(taken)} times, in {statistics.median(taken):.0f} ms (p50), {max(taken)} ms at most"
    )
    print(f"the gateway followed a move after {statistics.median(moves):.0f} ms (p50), {max(moves):.0f} ms at most")
    highest: list[float] = []
    for phase, firsts in phases.items():
        few = "" if len(firsts) >= needed(99) else " (too few)"
        p50, p99 = (percentile_of(firsts, which) for which in (50, 99))
        of = f"{len(firsts):6} requests{few}, first token"
        print(f"  {phase:8} {of} p50 {p50:6.1f} ms, p99 {p99:6.1f} ms")
        highest.append(p99)
    ratio = highest[1] / highest[0]
    print(f"  {len(failed)} failed; p99 moving against standing {ratio:.2f} (at most {LIMIT})")
    for failure in failed[:5]:
        print(f"    {failure}")
    return int(bool(failed) or ratio > LIMIT)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with asyncio.Runner(loop_factory=punctual_loop) as runner:
            found = runner.run(ask(Ways(**json.loads(sys.argv[1]))))
        print(json.dumps([asdict(each) for each in found]))
    else:
        sys.exit(main())
