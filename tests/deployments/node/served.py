"""A node of its own process over small Python models, and a store that can be taken away from it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, Literal

import psutil
from pydantic import JsonValue

from infra.errors import TritonError
from infra.processes.sessions import free_ports, start_session, terminate
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from infra.triton.command import key_of, serves
from infra.triton.processes import model_processes
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.triton.config import LLM, RELEASE, llm_config, release_config
from tasks.triton.placement import release_names
from tests.fleet import Fleet
from tests.processes import processes_that
from tests.waiting import PATIENCE

# Answers with its own text, after as many seconds as the request says, or in as many pieces with a pause before each
# (`count N SECONDS`); what the others do, the request or `INITIALIZE` says. Requests of which `max_tokens` is no number
# above 0 are refused at once, as the real models do.
MODEL = """
import os, signal, threading, time
import numpy as np
import triton_python_backend_utils as triton

TEXT, BEGIN = {text!r}, {begin!r}

def answer(sender, text):
    if text.startswith("wait "):
        time.sleep(float(text.split()[1]))
    pieces, pause = (int(text.split()[1]), float(text.split()[2])) if text.startswith("count ") else (1, 0.0)
    for number in range(pieces):
        time.sleep(pause)
        sender.send(triton.InferenceResponse(tensors()), flags=int(number + 1 == pieces))

def tensors():
    return [
        triton.Tensor("text_output", np.array([[TEXT.encode()]], dtype=np.object_)),
        triton.Tensor("cum_log_probs", np.zeros((1, 1), dtype=np.float32)),
        triton.Tensor("output_log_probs", np.zeros((1, 1, 1), dtype=np.float32)),
    ]

class TritonPythonModel:
    def initialize(self, arguments):
        exec(BEGIN)

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            inputs = {{tensor.name(): tensor.as_numpy().flat[0] for tensor in request.inputs()}}
            text = inputs["text_input"].decode()
            if inputs["max_tokens"] < 1:
                error = triton.TritonError("max_tokens is at least 1", triton.TritonError.INVALID_ARG)
                sender.send(triton.InferenceResponse(error=error), flags=1)
            elif text == "die":
                os._exit(3)
            else:
                threading.Thread(target=answer, args=(sender, text), daemon=True).start()
"""


class Door:
    """A TCP proxy before the store: `open`, `away` (nobody listens), or `hang`ing: it takes all and answers nothing."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.state: Literal["open", "away", "hang"] = "open"
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self.state = "away"
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.state == "away":
                client.close()
            else:
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._upstream)) as server:
            while self.state != "away":
                if self.state == "hang":
                    time.sleep(0.1)
                    continue
                for source in select.select((client, server), (), (), 0.1)[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)


@dataclass
class Served:
    """A node, its store and what it is to serve. `folder` is its home."""

    fleet: Fleet
    door: Door
    folder: Path
    name: str = "one"
    ports: tuple[int, ...] = field(default_factory=lambda: tuple(free_ports(4)))
    process: Popen[bytes] | None = None
    made: int = 0

    @property
    def target(self) -> Target:
        return self.fleet.target

    @property
    def log(self) -> Path:
        return self.fleet.folder / f"{self.name}.log"

    @property
    def models(self) -> Path:
        return self.folder / "node" / "models"

    def start(self) -> None:
        self.fleet.folder.mkdir(exist_ok=True)
        bucket = self.fleet.store.bucket
        environment = os.environ | {
            "AWS_ENDPOINT_URL_S3": self.door.endpoint,
            "ENGINEHOUSE_HOME": str(self.folder),
            "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
            "ENGINEHOUSE_TARGET": self.target.name,
            "ENGINEHOUSE_TRITON_HTTP": f"http://127.0.0.1:{self.ports[0]}",
            "ENGINEHOUSE_TRITON_GRPC": f"127.0.0.1:{self.ports[1]}",
            "ENGINEHOUSE_NODE_METRICS_PORT": str(self.ports[2]),
            "ENGINEHOUSE_NODE_HEALTH_PORT": str(self.ports[3]),
        }
        command = [sys.executable, "-c", "import sys; from deployments.cli.main import main; sys.exit(main())"]
        command += ["node", "--name", self.name]
        self.process = start_session(command, log=self.log, folder=CHECKOUT, environment=environment)

    def kill(self) -> None:
        """End the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """End the agent, Triton and all models, whatever they do."""
        leaders = self.tritons()
        if self.process is not None:
            terminate(self.process, 0)
        for leader in leaders:
            terminate(leader.pid, 0)

    def tritons(self) -> list[psutil.Process]:
        return processes_that(
            lambda process: serves(process.cmdline(), self.models) and process.pid == os.getsid(process.pid)
        )

    @property
    def triton(self) -> TritonClient:
        """A client with the control key of the Triton that runs now."""
        running = self.tritons()
        key = key_of(running[0].cmdline()) if running else ""
        return TritonClient(f"127.0.0.1:{self.ports[0]}", key=key, timeout_s=3)

    def processes(self, model: str, release: int) -> list[psutil.Process]:
        return model_processes(self.models / release_names(model, release)[LLM])

    def release(
        self,
        model: str,
        *,
        begin: str = "",
        public: bool = True,
        passed: bool = True,
        aliases: Sequence[str] = (),
        slots: int | None = None,
    ) -> int:
        """A release whose model answers with `MODEL@N`. Its candidate is wanted, and `public` if that is said."""
        self.made += 1
        number = max(self.target.releases(model), default=0) + 1
        engine = Identity.of("build", 1, inputs={}, fields={"made": self.made, "model": model})
        repository = Identity.of("assemble", 1, inputs={"engine": engine}, fields={})
        code = MODEL.format(text=f"{model}@{number}", begin=begin)
        folder = self.fleet.folder / f"{model}-{number}"
        files = {
            f"repository/{LLM}/config.pbtxt": llm_config(),
            f"repository/{LLM}/1/model.py": code,
            f"repository/{RELEASE}/config.pbtxt": release_config(),
            "engine/weights.bin": "0" * 100_000,
        }
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        refs: dict[str, ArtifactRef] = {
            "engine": self.fleet.publish("engine", model, engine, folder / "engine"),
            "repository": self.fleet.publish("repository", model, repository, folder / "repository"),
        }
        serving: dict[str, JsonValue] = {"aliases": [*aliases]}
        if slots is not None:
            serving["slots"] = slots
        digests = {kind: self.fleet.store.need(ref).manifest.digest for kind, ref in refs.items()}
        intent = Intent(
            model=model,
            release=number,
            repository=str(refs["repository"]),
            digest=Identity(dict(digests)).digest,
            recipe={},
            serving=serving,
            source="file:///nowhere",
            flow_run="some-run",
        )
        assert self.target.reserve(model, lambda _: intent).release == number
        if passed:
            self.target.conclude(model, Result(release=number, state="passed"))
        change = "promoted" if public else "with_candidate"
        self.target.move(model, lambda current: getattr(current, change)(number))
        shutil.rmtree(folder)
        return number

    def ask(self, model: str, text: str = "what", seconds: float = 3.0) -> str:
        """What the public name answers; the error's message if it does not."""
        client = TritonClient(f"127.0.0.1:{self.ports[0]}", timeout_s=seconds)
        try:
            return client.generate(model, {"text_input": text, "max_tokens": 1}).text
        except TritonError as error:
            return f"error: {error.message}"

    def report(self) -> NodeReport | None:
        return next((node for node in self.target.nodes() if node.node == self.name), None)

    def state(self, model: str, release: int) -> str:
        report = self.report()
        known = report.models.get(model) if report is not None else None
        return known.releases[release].state if known is not None and release in known.releases else ""

    def health(self) -> tuple[int, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.ports[3]}/ready"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
        """Wait for `condition`; returns the seconds that it took."""
        started = time.monotonic()
        while not condition():
            taken = time.monotonic() - started
            assert taken < seconds * PATIENCE, (
                f"no {what} within {seconds * PATIENCE} s: {self.report()}\n{self.tail()}"
            )
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_for(self, model: str, release: int, seconds: float = 60.0) -> float:
        """Wait until the public name answers with the release."""
        return self.wait(lambda: self.ask(model) == f"{model}@{release}", f"answer of {model}@{release}", seconds)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


@contextlib.contextmanager
def served(fleet: Fleet, folder: Path, name: str = "one") -> Generator[Served]:
    """A node that has been started, over an empty target."""
    door = Door(int(fleet.store.bucket.endpoint.rpartition(":")[2]))
    made = Served(fleet, door, folder, name)
    try:
        made.start()
        yield made
    finally:
        made.end()
        door.close()
