"""`make bench`: the kind `llamacpp` as it is served, against llama.cpp's own server.

Ours is asked by its public name on a Triton started as a node starts it; the rival is xllamacpp's `Server` as the
library sets it up. Both have the GGUF of the embedded stack, the same threads, slots, prompts and greedy sampling, and
one client reads both over HTTP. The rival gets its prompts rendered. Rounds go in turns, and medians are compared.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from infra import settings
from infra.processes.sessions import free_ports
from infra.triton.command import Ports
from infra.triton.supervisor import Supervisor
from tasks.serving.contract import CONTRACT
from tasks.serving.settings import ServingSettings
from tasks.triton.placement import place_release, placed_models, write_public
from tasks.triton.repository import write_release

MODEL, SLOTS, CONTEXT_TOKENS, TOKENS = "smollm2-135m", 8, 2048, 96
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))
LIMIT = 0.9
PAUSE_S = 1.0
"""Before each round. While the other one is busy, llama.cpp's cores are shared, and its threads sleep as they wait."""

SUBJECTS = ("the sea", "a lighthouse", "two brothers", "a train", "winter", "a library", "the desert", "a dog")
# None of these ends before its 96 tokens.
PROMPTS = tuple(f"Write a long story about {subject}." for subject in SUBJECTS)


@dataclass(frozen=True)
class Server:
    """One of the two: where it is asked, and with what for a prompt."""

    port: int
    path: str
    body: Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class Round:
    """Tokens a second of all streams together, and seconds to the first one in the middle."""

    tokens_a_second: float
    first_s: float


@contextmanager
def ours(gguf: Path) -> Generator[Server]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact, engine, models = folder / "artifact", folder / "engine", folder / "models"
        for made in (artifact, engine, models):
            made.mkdir()
        served = ServingSettings("llamacpp", "engine/model.gguf", SLOTS, CONTEXT_TOKENS, True, 60.0, contract=CONTRACT)
        write_release(artifact, served)
        shutil.copyfile(gguf, engine / "model.gguf")
        ports = Ports(*free_ports(3))
        supervisor = Supervisor(folder, models, ports)
        try:
            supervisor.ensure()
            place_release(artifact, engine, models, MODEL, 1, grpc=supervisor.client.grpc)
            write_public(models, MODEL, 1)
            for model in (*placed_models(models, MODEL, 1), MODEL):
                supervisor.client.load(model)
            yield Server(
                ports.http,
                f"/v2/models/{MODEL}/generate_stream",
                lambda prompt: {"text_input": prompt, "max_tokens": TOKENS, "temperature": 0.0, "stream": True},
            )
        finally:
            supervisor.stop(grace_s=2)


@contextmanager
def llama_cpp(gguf: Path) -> Generator[Server]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(str(gguf), there), daemon=True)
    process.start()
    there.close()
    try:
        port = here.recv()
        rendered = {prompt: _render(port, prompt) for prompt in PROMPTS}
        greedy = {"samplers": ["top_k"], "top_k": 1, "cache_prompt": False}
        yield Server(
            port,
            "/completion",
            lambda prompt: {"prompt": rendered[prompt], "n_predict": TOKENS, "stream": True, **greedy},
        )
    finally:
        process.kill()
        process.join()


def serve(gguf: str, ready: Connection) -> None:
    """The library's own server, in a process that ends with this one."""
    library: Any = importlib.import_module("xllamacpp")
    parameters = library.CommonParams()
    parameters.model.path = gguf
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    parameters.verbosity = 1
    parameters.port = 0
    server = library.Server(parameters)
    ready.send(int(str(server.listening_address).rpartition(":")[2]))
    with suppress(EOFError):
        ready.recv()


def _render(port: int, prompt: str) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/apply-template", body) as response:
        return json.load(response)["prompt"]


async def stream(server: Server, prompt: str) -> float:
    """Read one answer of TOKENS tokens. Returns the seconds to its first event."""
    body = json.dumps(server.body(prompt))
    head = f"POST {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    started, first, received = time.monotonic(), 0.0, bytearray()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write((head + body).encode())
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = await reader.read(1 << 16)
        received += data
        if not data:
            break
        if not first and b"data:" in received:
            first = time.monotonic() - started
    writer.close()
    # A character of several tokens is one event, and the end may be one of its own.
    assert TOKENS * 0.9 < received.count(b"data:") <= TOKENS + 1, received.decode()
    return first


async def measure(server: Server, streams: int) -> Round:
    started = time.monotonic()
    firsts = await asyncio.gather(*(stream(server, prompt) for prompt in PROMPTS[:streams]))
    return Round(streams * TOKENS / (time.monotonic() - started), statistics.median(firsts))


def main() -> int:
    settings.activate()
    made = settings.load().home.glob(f"node/models/{MODEL}--r*--llm/1/engine/model.gguf")
    gguf = Path(os.environ.get("BENCH_GGUF") or next(made))
    slow = False
    with ours(gguf) as us, llama_cpp(gguf) as rival:
        for streams in (1, SLOTS):
            rounds: dict[Server, list[Round]] = {us: [], rival: []}
            for _ in range(ROUNDS):
                for server, seen in rounds.items():
                    time.sleep(PAUSE_S)
                    seen.append(asyncio.run(measure(server, streams)))
            speeds = [statistics.median(seen.tokens_a_second for seen in rounds[server]) for server in (us, rival)]
            firsts = [statistics.median(seen.first_s for seen in rounds[server]) * 1000 for server in (us, rival)]
            ratio = speeds[0] / speeds[1]
            slow |= ratio < LIMIT
            print(f"{streams} streams of {TOKENS} tokens, {MODEL}: median of {ROUNDS} rounds")
            for name, speed, first in zip(("ours", "llama.cpp's own server"), speeds, firsts, strict=True):
                print(f"  {name:<24} {speed:5.0f} tokens/s, first token after {first:4.0f} ms")
            print(f"  ratio {ratio:.2f} (at least {LIMIT})")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
