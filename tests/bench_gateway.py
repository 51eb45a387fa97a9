"""What the gateway adds: 32 streams of a real Triton, asked directly and through it in turns, over gRPC and HTTP.

Its model is small and sends a token every 20 ms, so all that is measured is the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deployments.gateway.messages import SERVICE, infer_request, parse_type
from deployments.gateway.state import TargetState
from infra.processes.sessions import free_ports, terminate
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.server import start_server
from tasks.triton.config import LLM, RELEASE, instantiate, llm_config, release_config
from tasks.triton.placement import release_names, write_public
from tests.deployments.gateway.house import house, node

aio: Any = importlib.import_module("grpc.aio")

MODEL = "bench"
STREAMS = 32
TOKENS = 100
ROUNDS = 3
_GAP_SECONDS = 0.02
_ANSWERS = 2
"""Of each stream in a round, one after the other."""
_ADDED_MS = 3.0
"""How much later the first token may come through the gateway."""

CODE = f"""
import asyncio, threading
import numpy as np
import triton_python_backend_utils as triton

TEXT = np.array([[b" token"]], dtype=np.object_)
SUMS, EACH = np.zeros((1, 1), dtype=np.float32), np.zeros((1, 1, 1), dtype=np.float32)
NAMES = ("text_output", "cum_log_probs", "output_log_probs")

async def answer(sender):
    for left in range({TOKENS} - 1, -1, -1):
        tensors = [triton.Tensor(name, value) for name, value in zip(NAMES, (TEXT, SUMS, EACH))]
        sender.send(triton.InferenceResponse(tensors), flags=int(left == 0))
        await asyncio.sleep({_GAP_SECONDS})

class TritonPythonModel:
    def initialize(self, arguments):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def execute(self, requests):
        for request in requests:
            asyncio.run_coroutine_threadsafe(answer(request.get_response_sender()), self.loop)
"""


@dataclass(frozen=True)
class Figures:
    """First token (p50) and the time between tokens (p99) in ms; tokens a second."""

    first: float
    gap: float
    tokens: float


Ask = Callable[[], AsyncIterator[None]]
"""One answer: an item for each token."""


def by_grpc(address: str) -> Ask:
    channel = aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
    infer = channel.unary_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=parse_type("ModelInferRequest").SerializeToString,
        response_deserializer=parse_type("ModelStreamInferResponse").FromString,
    )
    request = infer_request()
    request.model_name = MODEL
    for name, datatype, raw in (("text_input", "BYTES", b"\5\0\0\0hello"), ("max_tokens", "INT32", b"\1\0\0\0")):
        request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        request.raw_input_contents.append(raw)

    async def ask() -> AsyncIterator[None]:
        async for response in infer(request):
            assert not response.error_message, response.error_message
            if response.infer_response.outputs:
                yield

    return ask


def by_http(address: str) -> Ask:
    host, _, port = address.partition(":")
    body = json.dumps({"text_input": "hello", "max_tokens": 1, "stream": True}).encode()
    head = f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask() -> AsyncIterator[None]:
        """Over a connection that is kept, as clients do."""
        reader, writer = free.pop() if free else await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body)
        while (line := await reader.readline()) != b"0\r\n":
            assert line, "the answer ended early"
            if line.startswith(b"data: "):
                yield
        await reader.readline()
        free.append((reader, writer))

    return ask


async def measure(ask: Ask) -> Figures:
    firsts: list[float] = []
    gaps: list[float] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number / STREAMS * TOKENS * _GAP_SECONDS / 2)  # apart from each other
        for _ in range(_ANSWERS):
            last = began = time.perf_counter()
            async for _ in ask():
                now = time.perf_counter()
                (gaps if last != began else firsts).append(now - last)
                last = now

    async for _ in ask():  # connections, and what is asked once for a release
        pass
    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(STREAMS)))
    seconds = time.perf_counter() - began
    gaps.sort()
    tokens = (len(firsts) + len(gaps)) / seconds
    return Figures(statistics.median(firsts) * 1000, gaps[int(len(gaps) * 0.99)] * 1000, tokens)


def serve_gateway(grpc: str) -> None:
    """A gateway that knows one node; it lives until its input ends."""
    with house() as made:
        made.watch.tell(TargetState("bench", {MODEL: 1}, (node("one", grpc, {MODEL: 1}),)))
        print(made.url.removeprefix("http://"), made.grpc, flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def triton(folder: Path) -> Generator[Ports]:
    """A Triton with the model as release 1 and under its public name."""
    repository, work = folder / "repository", folder / "work"
    names = release_names(MODEL, 1, (LLM, RELEASE))
    for relative, config in ((LLM, llm_config()), (RELEASE, release_config())):
        (repository / names[relative] / "1").mkdir(parents=True)
        (repository / names[relative] / "config.pbtxt").write_text(instantiate(config, names))
    (repository / names[LLM] / "1" / "model.py").write_text(CODE)
    write_public(repository, MODEL, 1)
    work.mkdir()
    ports = Ports(*free_ports(3))
    process = start_server(repository, work, folder / "log", ports=ports, control_key="key", exit_timeout_s=5)
    try:
        client = TritonClient(f"127.0.0.1:{ports.http}", key="key")
        while not client.live():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        for name in (*names.values(), MODEL):
            client.load(name)
        yield ports
    finally:
        terminate(process, 5)


@contextlib.contextmanager
def gateway(grpc: str) -> Generator[tuple[psutil.Process, str, str]]:
    """A gateway in a process of its own: it, and its addresses over HTTP and gRPC."""
    command = [sys.executable, "-m", "tests.bench_gateway", "gateway", grpc]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        http, own = process.stdout.readline().split()
        yield psutil.Process(process.pid), http, own
        process.communicate("")


def ask_from_outside(way: str, address: str) -> Figures:
    """The measurement from a process of its own, as clients are."""
    command = [sys.executable, "-m", "tests.bench_gateway", way, address]
    found = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True, text=True)
    return Figures(**json.loads(found.stdout))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, triton(Path(folder)) as ports:
        grpc = f"127.0.0.1:{ports.grpc}"
        with gateway(grpc) as (process, own_http, own_grpc):
            addresses = {
                ("grpc", "direct"): grpc,
                ("grpc", "gateway"): own_grpc,
                ("http", "direct"): f"127.0.0.1:{ports.http}",
                ("http", "gateway"): own_http,
            }
            found: dict[tuple[str, str], list[Figures]] = {which: [] for which in addresses}
            spent: dict[str, float] = {"grpc": 0.0, "http": 0.0}
            for _ in range(ROUNDS):
                for (way, where), address in addresses.items():
                    before = sum(process.cpu_times()[:2])
                    found[way, where].append(ask_from_outside(way, address))
                    if where == "gateway":
                        spent[way] += sum(process.cpu_times()[:2]) - before
    return report(found, spent)


def report(found: dict[tuple[str, str], list[Figures]], spent: dict[str, float]) -> int:
    print(f"\n{STREAMS} streams that offer {STREAMS / _GAP_SECONDS:,.0f} tokens a second, {ROUNDS} rounds, medians:")
    middle: dict[tuple[str, str], Figures] = {}
    for (way, where), rounds in found.items():
        columns = zip(*((each.first, each.gap, each.tokens) for each in rounds), strict=True)
        made = middle[way, where] = Figures(*(statistics.median(column) for column in columns))
        print(
            f"  {way} {where:8} first token p50 {made.first:6.2f} ms, gap p99 {made.gap:6.1f} ms,"
            f" {made.tokens:6,.0f} tokens/s"
        )
    late = False
    for way, seconds in spent.items():
        tokens = ROUNDS * (STREAMS * _ANSWERS + 1) * TOKENS
        added = middle[way, "gateway"].first - middle[way, "direct"].first
        late |= added > _ADDED_MS
        print(
            f"  {way}: {added:+.2f} ms to the first token, {seconds / tokens * 1e6:.0f} µs of the gateway's CPU a token"
        )
    return int(late)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["gateway", grpc]:
            serve_gateway(grpc)
        case ["grpc" | "http" as way, address]:

            async def one() -> Figures:
                return await measure((by_grpc if way == "grpc" else by_http)(address))

            print(json.dumps(vars(asyncio.run(one()))))
        case _:
            sys.exit(main())
