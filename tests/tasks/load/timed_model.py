"""A model of known delays in a process of its own, over all protocols, that writes down when it did what.

`python -m tests.tasks.load.timed_model '{"first_s": 0.1, …}'` prints its ports, and when its input ends, one JSON
object for each request. Moments are of the monotonic clock, which all processes of a machine share. What a prompt
begins with, before its first colon, names the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

from infra.settings import CHECKOUT
from tasks.serving.contract import CONTRACT, inputs_of

aio: Any = importlib.import_module("grpc.aio")
messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
service: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")


@dataclass(frozen=True)
class Delays:
    """The first token comes after `first_s` times a number drawn around 1, each further one `token_s` after it.

    When request `stall_at` comes, nothing is sent for `stall_s`. Every `fail_every`th request ends by an error. When
    request `tell_at` comes, `Running.reached` returns. `slower` has models that take so many times as long, and every
    second request to `failing` fails.
    """

    first_s: float = 0.1
    token_s: float = 0.02
    spread: float = 0.3
    stall_at: int = -1
    stall_s: float = 0.0
    fail_every: int = 0
    tell_at: int = -1
    slower: dict[str, float] = field(default_factory=dict[str, float])
    failing: str = ""


@dataclass(frozen=True)
class Seen:
    """What the model knows of a request: when it came, and when its first and its last token were sent."""

    name: str
    came: float
    first: float
    last: float
    tokens: int
    gaps: list[float] = field(default_factory=list[float])


class Failed(Exception):
    """The request ends by an error."""


class TimedModel(service.GRPCInferenceServiceServicer):
    def __init__(self, delays: Delays) -> None:
        self.delays = delays
        self.seen: list[Seen] = []
        self._random = random.Random(7)
        self._stall = (0.0, 0.0)
        self._asked = self._failing = 0
        self._pieces = {final: self._piece(final) for final in (False, True)}

    async def tokens(self, model: str, prompt: str, count: int) -> AsyncIterator[int]:
        """A number for each token at its moment; what was sent late does not delay the next."""
        came = time.monotonic()
        if self._asked == self.delays.stall_at:
            self._stall = (came, came + self.delays.stall_s)
        if self._asked == self.delays.tell_at:
            print("reached", flush=True)
        self._asked += 1
        if self.delays.fail_every and self._asked % self.delays.fail_every == 0:
            raise Failed
        self._failing += model == self.delays.failing
        if model == self.delays.failing and self._failing % 2 == 0:
            raise Failed
        factor = self.delays.slower.get(model, 1.0)
        due = came + factor * self.delays.first_s * self._random.lognormvariate(0, self.delays.spread)
        sent: list[float] = []
        for number in range(count):
            begin, end = self._stall
            due = end if begin <= due < end else due
            await asyncio.sleep(due - time.monotonic())
            if begin < self._stall[0] and self._stall[0] <= due < self._stall[1]:  # it began meanwhile
                due = self._stall[1]
                await asyncio.sleep(due - time.monotonic())
            sent.append(time.monotonic())
            yield number
            due += factor * self.delays.token_s
        gaps = [after - before for before, after in pairwise(sent)]
        self.seen.append(Seen(prompt.partition(":")[0], came, sent[0], sent[-1], count, gaps))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        answer = messages.ModelMetadataResponse(name=request.name)
        for each in inputs_of(CONTRACT):
            answer.inputs.add(name=each.name, datatype=each.data_type, shape=[-1, 1])
        return answer

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            given = {each.name: raw for each, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
            count = int.from_bytes(given["max_tokens"], "little")
            try:
                async for number in self.tokens(request.model_name, given["text_input"][4:].decode(), count):
                    yield self._pieces[number == count - 1]
            except Failed:
                yield messages.ModelStreamInferResponse(error_message="it has failed [internal]")

    def _piece(self, final: bool) -> Any:
        made = messages.ModelStreamInferResponse()
        response = made.infer_response
        response.parameters["triton_final_response"].bool_param = final
        for name, kind, raw in (
            ("text_output", "BYTES", b"\4\0\0\0 tok"),
            ("num_output_tokens", "INT32", b"\1\0\0\0"),
            ("num_input_tokens", "INT32", b"\5\0\0\0"),
        ):
            response.outputs.add(name=name, datatype=kind, shape=[1, 1])
            response.raw_output_contents.append(raw)
        return made

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                _, path, _ = head.split(b" ", 2)
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].partition(b":")[2])) if length else b"{}"
                await self._answer(path.decode(), json.loads(body), writer)
        writer.close()

    async def _answer(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        def chunk(document: object) -> None:
            data = b"data: " + (document if isinstance(document, bytes) else json.dumps(document).encode()) + b"\n\n"
            if writer.is_closing():
                raise ConnectionError("the client has left")
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))

        if not path.endswith(("generate_stream", "completions")):
            names = [{"name": each.name} for each in inputs_of(CONTRACT)]
            text = json.dumps({"inputs": names}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
            return
        chat = path.endswith("chat/completions")
        openai = path.endswith("completions")
        prompt = body["messages"][0]["content"] if chat else body.get("prompt") or body.get("text_input")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        model, count = body.get("model") or path.split("/")[3], int(body["max_tokens"])
        if chat:
            chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None})
        try:
            async for _ in self.tokens(model, cast(str, prompt), count):
                if openai:
                    piece = {"delta": {"content": " tok"}} if chat else {"text": " tok"}
                    chunk({"object": f"{'chat.' * chat}completion.chunk", "choices": [{"index": 0, **piece}]})
                else:
                    chunk({"text_output": " tok", "num_output_tokens": 1, "num_input_tokens": 5})
        except Failed:
            chunk({"error": "it has failed [internal]"})
        if openai:
            usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": count + 5}
            chunk({"choices": [], "usage": usage})
            chunk(b"[DONE]")
        writer.write(b"0\r\n\r\n")


async def serve(delays: Delays) -> None:
    model = TimedModel(delays)
    grpc = aio.server(options=(("grpc.so_reuseport", 0),))
    service.add_GRPCInferenceServiceServicer_to_server(model, grpc)
    port = grpc.add_insecure_port("127.0.0.1:0")
    await grpc.start()
    http = await asyncio.start_server(model.http, "127.0.0.1", 0)
    print(http.sockets[0].getsockname()[1], port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await grpc.stop(None)
    http.close()
    print(json.dumps([asdict(each) for each in model.seen]), flush=True)
    os._exit(0)


@dataclass
class Running:
    """`seen` is filled when the model has ended."""

    http: str
    grpc: str
    told: IO[str]
    seen: list[Seen] = field(default_factory=list[Seen])

    def reached(self) -> None:
        """Wait until the request has come that `tell_at` names."""
        assert self.told.readline() == "reached\n"


@contextlib.contextmanager
def timed_model(delays: Delays) -> Generator[Running]:
    """The model in a process of its own, until the block ends."""
    command = [sys.executable, "-m", "tests.tasks.load.timed_model", json.dumps(asdict(delays))]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(command, cwd=Path(CHECKOUT), env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        ports = process.stdout.readline().split()
        http, grpc = (f"127.0.0.1:{port}" for port in ports)
        running = Running(f"http://{http}", grpc, process.stdout)
        try:
            yield running
        finally:
            told, _ = process.communicate("", timeout=30)
            running.seen += [Seen(**each) for each in json.loads(told or "[]")]


if __name__ == "__main__":
    asyncio.run(serve(Delays(**json.loads(sys.argv[1]))))
