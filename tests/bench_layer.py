"""`make bench`: what stands between an engine and its clients, ours against NVIDIA's own models of 0.19.

Both ensembles run with their defaults, each in a Triton of its own, before the same stand-in of the engine
(`tests/standin/paced_model.py`), which gives each stream a token every 20 ms by the clock. gRPC clients of both, in
turns. `ENGINEHOUSE_TEST_TEMPLATES` names the folder with NVIDIA's templates by version.

CPU is that of `tritonserver` and of the processes of its models; the stand-in's own process and the clients are left
out. A token's share of what Triton does for the stand-in is in it, for both.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from infra.processes.sessions import free_ports, terminate
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.server import start_server
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model
from tasks.serving.generation import files_in
from tasks.triton.backend_config import BACKEND
from tasks.triton.config import LLM, TENSORRT_LLM
from tasks.triton.llm_processes import own_cores
from tasks.triton.placement import place_release, placed_models, write_public
from tasks.triton.protobuf import parse_config, render
from tasks.triton.repository import TOKENIZER_FOLDER
from tasks.triton.upstream import fill_upstream
from tasks.triton.upstream_templates import MODELS
from tasks.triton.upstream_values import upstream_values
from tasks.trtllm.limits import EngineLimits
from tests.standin import facts
from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.small_tokenizers import byte_level

VERSION = "0.19.0"
CORES = len(os.sched_getaffinity(0))
STREAMS = tuple(map(int, os.environ.get("BENCH_STREAMS", "1,32,96,256" if CORES >= 16 else "1,32,96").split(",")))
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
"""That a stream takes where nobody is behind."""

TURNS = int(os.environ.get("BENCH_TURNS", "2"))
TOKEN_SECONDS = 0.02
SLOTS = 256
PROMPT = "How do I count to nine in French?"
SAID = " un, deux, trois, quatre, cinq, six, sept, huit, neuf."
PROCESSES, CLIENTS = max(1, CORES // 4), max(1, CORES // 2)
"""Of the stand-in and of the clients, among which the streams are divided: none of them is to be the limit. To begin a
stream takes a client 1 ms of a core."""

MORE_TOKENS, LESS_CPU, SLOWER = 1.5, 0.7, 1.05
"""At 96 streams tokens a second and CPU a token against NVIDIA's, at one stream first token and gap."""
MANY, FIRST_MS = 10_000, 60.0
"""At 256 streams, on 16 cores: tokens a second, and the median of the first token. All of them begin within the time of
a token, the worst case. So they are measured as they mostly run, too: one begins where another has ended.
"""


@dataclass(frozen=True)
class Measured:
    """One turn: times in milliseconds, CPU in microseconds."""

    tokens_a_second: float
    cpu_a_token: float
    first: Sequence[float]
    gaps: Sequence[float]

    def __str__(self) -> str:
        times = [f"{at(self.first, 0.5):6.1f} {at(self.first, 0.99):6.1f}"]
        times += [f"{at(self.gaps, 0.5):6.1f} {at(self.gaps, 0.99):6.1f}"]
        return (
            f"{self.tokens_a_second:6.0f} tokens/s {self.cpu_a_token:5.0f} us/token  first {times[0]}  gap {times[1]}"
        )


def at(values: Sequence[float], share: float) -> float:
    """The value below which that share of them lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def ours(folder: Path, models: Path, client: TritonClient) -> None:
    """A release of kind trt-engine, placed and public."""
    engine, artifact = folder / "engine", folder / "artifact"
    TrtEngineKind(spec()).write_release(limits(), files_in(engine / TOKENIZER_FOLDER), artifact)
    stand_in(artifact / TENSORRT_LLM)
    # As a node does it, which also chooses how many processes `llm` gets.
    place_release(artifact, engine, models, "bench", 1, grpc=client.grpc)
    config = parse_config((models / f"bench--r1--{LLM}" / "config.pbtxt").read_text())
    print(f"{own_cores()} cores: {config.instance_group[0].count} processes of {LLM} for {SLOTS} slots", flush=True)
    write_public(models, "bench", 1)
    for name in (*placed_models(models, "bench", 1), "bench"):
        client.load(name)


def theirs(folder: Path, models: Path, client: TritonClient) -> None:
    """NVIDIA's templates, filled as `enginehouse assemble --layout upstream` does."""
    engine = folder / "engine"
    values = upstream_values(
        TrtEngineKind(spec()).parameters,
        VERSION,
        engine_folder=str(engine),
        tokenizer_folder=str(engine / TOKENIZER_FOLDER),
        max_batch_size=SLOTS,
    )
    filled = folder / "upstream"
    fill_upstream(Path(os.environ["ENGINEHOUSE_TEST_TEMPLATES"]) / VERSION, values, filled, VERSION)
    stand_in(filled / TENSORRT_LLM)
    # Of pictures alone, and Enginehouse needs no Pillow.
    program = filled / "preprocessing" / "1" / "model.py"
    program.write_text(program.read_text().replace("from PIL import Image\n", ""))
    for model in (*(name for name in MODELS if name not in ("ensemble", "tensorrt_llm_bls")), "ensemble"):
        (filled / model).rename(models / model)
        client.load(model)


def stand_in(model: Path) -> None:
    """Make a model of TensorRT-LLM's C++ backend one of the stand-in."""
    config = parse_config((model / "config.pbtxt").read_text())
    assert config.backend == BACKEND
    config.backend = "python"
    config.instance_group[0].count = PROCESSES
    (model / "config.pbtxt").write_text(render(config))
    (model / "1").mkdir(exist_ok=True)
    shutil.copyfile(Path(str(facts.__file__)).with_name("paced_model.py"), model / "1" / "model.py")


def spec() -> Model:
    return Model.model_validate(
        {
            "name": "bench",
            "source": {"uri": "hf://org/repo@main"},
            "recipe": {
                "kind": "trt-engine",
                "runtime": {"tensorrt_llm": VERSION, "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 1},
            },
            "serving": {"slots": SLOTS, "context_tokens": 4096, "chat_template": False},
            "prompts": [{"name": "any", "text": "any", "max_tokens": 1, "expect": {"min_tokens": 1}}],
        }
    )


def limits() -> EngineLimits:
    return EngineLimits(
        max_batch_size=SLOTS,
        max_input_len=300,
        max_seq_len=4096,
        max_beam_width=1,
        tokens_per_block=64,
        paged_kv_cache=True,
        paged_context_fmha=True,
        logits_type="FP32",
        cache_bytes_per_token=1024,
        weight_bytes=10**9,
    )


def write_engine(engine: Path) -> None:
    engine.mkdir()
    tokenizer = byte_level().tokenizer
    ids = tokenizer.encode(SAID).ids
    (engine / "standin.json").write_text(json.dumps({"tokens": ids, "token_seconds": TOKEN_SECONDS}))
    (engine / "config.json").write_text(json.dumps({"version": VERSION}))
    write_tokenizer(engine / TOKENIZER_FOLDER, tokenizer)


@contextmanager
def triton(folder: Path) -> Generator[tuple[psutil.Process, TritonClient]]:
    for part in ("models", "work"):
        (folder / part).mkdir()
    ports = Ports(*free_ports(3))
    process = start_server(folder / "models", folder / "work", folder / "log", ports=ports, control_key="bench")
    try:
        client = TritonClient(f"127.0.0.1:{ports.http}", grpc=f"127.0.0.1:{ports.grpc}", key="bench")
        while not client.live():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield psutil.Process(process.pid), client
    except BaseException:
        print((folder / "log").read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        terminate(process, 10)


def cpu_seconds(server: psutil.Process) -> float:
    counted = [server, *server.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in counted if not is_stand_in(one))


def is_stand_in(process: psutil.Process) -> bool:
    return any(f"{TENSORRT_LLM}/1/model.py" in argument for argument in process.cmdline())


def measure(server: psutil.Process, address: str, model: str, streams: int, *, followed: bool = False) -> Measured:
    """`streams` at once for SECONDS, where nobody is behind. Few of them ask several times, for more first tokens.

    Where they are `followed`, each is two, and the first tokens are those of the second ones, which begin one by one.
    """
    requests = 1 if followed else max(1, 16 // streams)
    tokens = round(SECONDS / TOKEN_SECONDS / requests)
    shares = [streams // CLIENTS + (number < streams % CLIENTS) for number in range(CLIENTS)]
    asking = (sys.executable, "-m", "tests.bench_layer", address, model)
    asked = [
        subprocess.Popen(
            [*asking, str(share), str(requests), str(tokens), str(int(followed))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for share in shares
        if share
    ]
    for process in asked:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    before = cpu_seconds(server)
    started = time.monotonic()
    for process in asked:
        assert process.stdin is not None
        process.stdin.close()
    told = [json.loads(process.stdout.read()) for process in asked if process.stdout is not None]
    seconds = time.monotonic() - started
    assert not any(process.wait() for process in asked)
    cpu = cpu_seconds(server) - before
    total = streams * requests * tokens
    return Measured(
        total / seconds,
        1e6 * cpu / total,
        [1000 * value for each in told for value in each["first"]],
        [1000 * value for each in told for value in each["gaps"]],
    )


async def ask(
    address: str, model: str, streams: int, requests: int, tokens: int, followed: int
) -> dict[str, list[float]]:
    """Streams of so many requests in turn, which begin one after the other within the time of a token."""
    library: Any = importlib.import_module("tritonclient.grpc")
    aio: Any = importlib.import_module("grpc.aio")
    tokenizer = byte_level().tokenizer
    said: list[int] = tokenizer.encode(SAID).ids

    def request(tokens: int) -> Any:
        made = library.service_pb2.ModelInferRequest(model_name=model)
        for name, data_type, packed in (
            ("text_input", "BYTES", len(PROMPT).to_bytes(4, "little") + PROMPT.encode()),
            ("max_tokens", "INT32", tokens.to_bytes(4, "little")),
            ("stream", "BOOL", b"\1"),
        ):
            made.inputs.add(name=name, datatype=data_type, shape=(1, 1))
            made.raw_input_contents.append(packed)
        made.parameters["triton_enable_empty_final_response"].bool_param = True
        return made

    first, gaps = list[float](), list[float]()

    async def stream(number: int, stub: Any) -> None:
        await asyncio.sleep(number * TOKEN_SECONDS / streams)
        before = tokens * (number + 1) // (streams + 1) if followed else 0
        if before:
            await one(stub, before)
        for _ in range(requests):
            first.append(await one(stub, tokens - before))

    async def one(stub: Any, tokens: int) -> float:
        """One request. Returns how long its first token took, in seconds."""
        expected = tokenizer.decode(list(islice(cycle(said), tokens)))
        asked = request(tokens)
        started = last = time.perf_counter()
        call = stub.ModelStreamInfer()
        await call.write(asked)
        text, waited = b"", 0.0
        async for message in call:
            assert not message.error_message, message.error_message
            answer = message.infer_response
            names = [output.name for output in answer.outputs]
            new = answer.raw_output_contents[names.index("text_output")][4:] if names else b""
            if new:
                now = time.perf_counter()
                if text:
                    gaps.append(now - last)
                else:
                    waited = now - started
                last, text = now, text + new
            if answer.parameters["triton_final_response"].bool_param:
                break
        await call.done_writing()
        assert text.decode() == expected, (text, expected)
        return waited

    async with aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub = library.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        # A client's first request takes several times what all others do.
        await one(stub, 2)
        gaps.clear()
        print("ready", flush=True)
        sys.stdin.read()
        await asyncio.gather(*(stream(number, stub) for number in range(streams)))
    return {"first": first, "gaps": gaps}


def main() -> int:
    if not os.environ.get("ENGINEHOUSE_TEST_TEMPLATES"):
        print("the layer against NVIDIA's: skipped, ENGINEHOUSE_TEST_TEMPLATES names no folder with NVIDIA's templates")
        return 0
    good = True
    with tempfile.TemporaryDirectory() as made:
        folders = [Path(made) / name for name in ("ours", "theirs")]
        for folder in folders:
            folder.mkdir()
            write_engine(folder / "engine")
        with triton(folders[0]) as (our_server, our_client), triton(folders[1]) as (their_server, their_client):
            ours(folders[0], folders[0] / "models", our_client)
            theirs(folders[1], folders[1] / "models", their_client)
            sides = (
                ("Enginehouse", our_server, our_client, "bench"),
                ("NVIDIA", their_server, their_client, "ensemble"),
            )
            for _, server, client, model in sides:
                measure(server, client.grpc, model, 4)
            for streams in STREAMS:
                turns: dict[str, list[Measured]] = {name: [] for name, *_ in sides}
                for _ in range(TURNS):
                    for name, server, client, model in sides:
                        turns[name].append(measure(server, client.grpc, model, streams))
                        print(f"{streams:4} streams  {name:12} {turns[name][-1]}", flush=True)
                good &= compare(streams, turns["Enginehouse"], turns["NVIDIA"])
            for name, server, client, model in sides:
                followed = measure(server, client.grpc, model, max(STREAMS), followed=True)
                print(f"{max(STREAMS):4} followed {name:12} {followed}", flush=True)
    return 0 if good else 1


def compare(streams: int, ours: Sequence[Measured], theirs: Sequence[Measured]) -> bool:
    """Print the ratios of the medians. Returns whether they are what is wanted of so many streams."""
    mine, other = median(ours), median(theirs)
    tokens = mine.tokens_a_second / other.tokens_a_second
    cpu = mine.cpu_a_token / other.cpu_a_token
    first, gap = at(mine.first, 0.5) / at(other.first, 0.5), at(mine.gaps, 0.5) / at(other.gaps, 0.5)
    print(f"{streams:4} streams  ratios: tokens/s {tokens:.2f}, CPU {cpu:.2f}, first {first:.2f}, gap {gap:.2f}")
    if streams == 1:
        return first <= SLOWER and gap <= SLOWER
    if streams == 96:
        return cpu <= LESS_CPU and tokens >= MORE_TOKENS
    return streams != 256 or (mine.tokens_a_second >= MANY and at(mine.first, 0.5) < FIRST_MS)


def median(turns: Sequence[Measured]) -> Measured:
    """All turns as one."""
    return Measured(
        statistics.median(turn.tokens_a_second for turn in turns),
        statistics.median(turn.cpu_a_token for turn in turns),
        [value for turn in turns for value in turn.first],
        [value for turn in turns for value in turn.gaps],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        address, model, *numbers = sys.argv[1:]
        print(json.dumps(asyncio.run(ask(address, model, *map(int, numbers)))))
    else:
        sys.exit(main())
