"""Transfers under faults, each at random moments, each followed by the same command again: nothing lost, nothing torn.

ENGINEHOUSE_TEST_SEED repeats a campaign; each prints its row of the table with its seed. ENGINEHOUSE_TEST_MOMENTS makes
it longer.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest

from infra.errors import EnginehouseError, StoreError, StoreUnavailable
from infra.processes.sessions import free_ports, terminate
from infra.s3 import seaweedfs as server
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.verify import problems_in_folder, problems_in_store
from tests.faulty_proxy import Fault, proxy_before

pytestmark = pytest.mark.slow

T = TypeVar("T")

MOMENTS, FULL_MOMENTS = (int(os.environ.get("ENGINEHOUSE_TEST_MOMENTS", default)) for default in (20, 6))
"""Of a full server each takes a restart, which may take more than ten seconds."""
SIZES = {"rank0.engine": 20 << 20, "rank1.engine": 3 << 20, "deep/config.json": 700, "empty": 0}
"""In bytes: a file of several parts, one of one, and small ones."""
TOTAL = sum(SIZES.values())
DISK_BYTES = 40 * TOTAL
PATIENCE_SECONDS = 60.0
"""SeaweedFS takes some seconds to read again after a kill."""
ACCESS_KEY, SECRET_KEY = "enginehouse-tests", "only-on-loopback"
NAME = "faults"


@dataclass
class Server:
    """An S3 server of one test: its faults are nobody else's."""

    data: Path
    log: Path
    ports: dict[str, int] = field(default_factory=lambda: dict(zip(server.PORT_NAMES, free_ports(10), strict=True)))
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return server.endpoint_url(self.ports)

    def start(self) -> None:
        self.process = server.launch(self.data, self.log, self.ports, ACCESS_KEY, SECRET_KEY)
        server.wait_ready(self.endpoint, ACCESS_KEY, SECRET_KEY, log=self.log, process=self.process)

    def stop(self) -> None:
        if self.process is not None:
            terminate(self.process, 10)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running(Server(tmp_path / "s3", tmp_path / "s3.log"), monkeypatch) as started:
        yield started
    shutil.rmtree(tmp_path / "s3")


@contextmanager
def running(started: Server, monkeypatch: pytest.MonkeyPatch) -> Generator[Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", server.REGION)
    try:
        started.start()
        client: Any = boto3.client("s3", endpoint_url=started.endpoint)  # pyright: ignore[reportUnknownMemberType]
        client.create_bucket(Bucket=NAME)
        client.close()
        yield started
    finally:
        started.stop()


@dataclass(frozen=True)
class Command:
    """What is run, is hit by a fault, and is run again: find the artifact or publish it, then bring it."""

    endpoint: str
    number: int
    folder: Path
    back: Path

    @property
    def identity(self) -> Identity:
        return Identity.of("build", 1, inputs={}, fields={"moment": self.number})

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef("engine", self.identity.digest)

    def run(self) -> None:
        store = ArtifactStore(Bucket(NAME, "", self.endpoint))
        artifact = store.find(self.ref) or store.publish(
            self.ref, self.identity, self.folder, inputs={}, producer=Producer(task="build", code="enginehouse test")
        )
        store.download(artifact, self.back)

    def run_in_a_child(self) -> BaseProcess:
        child = multiprocessing.get_context("forkserver").Process(target=self.run)
        child.start()
        return child


@dataclass
class Campaign:
    """The row of one fault, and how to look for what it must not do."""

    fault: str
    seed: int
    server: Server
    folder: Path
    backs: Path
    capsys: pytest.CaptureFixture[str]
    moments: int = 0
    failed: int = 0
    lost: int = 0
    torn: int = 0
    unverified: int = 0

    def command(self, endpoint: str = "") -> Command:
        self.moments += 1
        back = self.backs / f"{self.fault.replace(' ', '-')}-{self.moments}"
        return Command(endpoint or self.server.endpoint, self.moments, self.folder, back)

    def attempt(self, command: Command) -> None:
        """Run it under the fault; an error of ours is what may come of that, and nothing else."""
        try:
            command.run()
        except EnginehouseError:
            self.failed += 1
        self.look(command)

    def look(self, command: Command) -> None:
        """What exists after the fault must be whole: an artifact that is found, and files under their final name."""
        store = ArtifactStore(Bucket(NAME, "", self.server.endpoint))
        found = patiently(lambda: store.find(command.ref))
        if found is not None and patiently(lambda: problems_in_store(store.bucket, found)):
            self.torn += 1
        if command.back.exists() and (found is None or problems_in_folder(found.manifest, command.back)):
            self.unverified += 1

    def again(self, command: Command) -> None:
        """The same command again, which has to succeed."""
        if not command.back.exists():
            patiently(command.run)
        found = ArtifactStore(Bucket(NAME, "", self.server.endpoint)).find(command.ref)
        self.lost += found is None
        same = all((command.back / name).read_bytes() == (self.folder / name).read_bytes() for name in SIZES)
        self.unverified += not same
        shutil.rmtree(command.back)

    def end(self, moments: int = MOMENTS) -> None:
        """Everything that was ever published still exists, byte for byte."""
        store = ArtifactStore(Bucket(NAME, "", self.server.endpoint))
        for number in range(1, self.moments + 1):
            found = store.find(Command("", number, self.folder, self.backs).ref)
            self.lost += found is None
            self.torn += found is not None and bool(problems_in_store(store.bucket, found))
        with self.capsys.disabled():
            print(
                f"\n{self.fault:28} {self.moments} moments, {self.failed:2} failed and came again; "
                f"lost {self.lost}, torn {self.torn}, unverified {self.unverified}   seed {self.seed}"
            )
        assert (self.moments, self.lost, self.torn, self.unverified) == (moments, 0, 0, 0)


Begin = Callable[[str], tuple[Campaign, random.Random]]


@pytest.fixture
def campaign(s3_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Begin:
    folder = tmp_path / "engine"
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))

    def begin(fault: str) -> tuple[Campaign, random.Random]:
        seed = int(os.environ.get("ENGINEHOUSE_TEST_SEED", random.randrange(2**32)))
        return Campaign(fault, seed, s3_server, folder, tmp_path, capsys), random.Random(seed)

    return begin


def patiently(call: Callable[[], T]) -> T:
    """As a step does: once more where the store says that it may."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def seconds_of_one(campaign: Campaign) -> float:
    """How long the command takes where nothing goes wrong; not the first time, when a server and a client start."""
    for number in (0, -1):
        command = Command(campaign.server.endpoint, number, campaign.folder, campaign.backs / f"first{number}")
        started = time.monotonic()
        child = command.run_in_a_child()
        child.join()
        assert child.exitcode == 0
    return time.monotonic() - started


def test_kill_9_of_the_uploader(campaign: Begin) -> None:
    faults, seed = campaign("kill -9 of the uploader")
    whole = seconds_of_one(faults)
    for _ in range(MOMENTS):
        command = faults.command()
        child = command.run_in_a_child()
        child.join(seed.uniform(0, whole))
        child.kill()
        child.join()
        faults.failed += child.exitcode != 0
        faults.look(command)
        faults.again(command)
    faults.end()
    assert faults.failed > MOMENTS / 5


def test_kill_9_of_the_server(campaign: Begin) -> None:
    faults, seed = campaign("kill -9 of the S3 server")
    whole = seconds_of_one(faults)
    for _ in range(MOMENTS):
        command = faults.command()
        child = command.run_in_a_child()
        child.join(seed.uniform(0, whole))
        faults.server.kill()
        time.sleep(seed.uniform(0, 0.5))
        faults.server.start()
        child.join()
        faults.failed += child.exitcode != 0
        faults.look(command)
        faults.again(command)
    faults.end()


@pytest.mark.parametrize("fault", ["reset", "cut", "slow-down", "delay"])
def test_faults_on_the_way(campaign: Begin, fault: Fault) -> None:
    faults, seed = campaign(f"{fault} on the way")
    happened = 0
    with proxy_before(faults.server.ports["s3"], seed) as proxy:
        for _ in range(MOMENTS):
            command = faults.command(proxy.endpoint)
            proxy.arm(fault, after=seed.randrange(2 * TOTAL), times=seed.choice((1, 3, 8)))
            faults.attempt(command)
            happened += proxy.happened > 0
            proxy.heal()
            faults.again(command)
    faults.end()
    assert happened > MOMENTS / 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of a size that a test can fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "enginehouse-test", folder), capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted, which needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(("umount", folder), check=True)


@contextmanager
def nearly_full(disk: Path, room: int) -> Generator[None]:
    """`disk` with `room` bytes left, while the block runs."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
    try:
        yield
    finally:
        filler.unlink()


def test_a_full_disk_here(campaign: Begin, small_disk: Path) -> None:
    faults, seed = campaign("disk full where it is brought")
    faults.backs = small_disk
    for _ in range(MOMENTS):
        command = faults.command()
        with nearly_full(small_disk, seed.randrange(TOTAL)):
            with pytest.raises(StoreError) as caught:
                command.run()
            assert caught.value.code == "disk-full" and list(small_disk.iterdir()) == [small_disk / "filler"]
            faults.failed += 1
            faults.look(command)
        faults.again(command)
    faults.end()


def test_a_full_disk_of_the_server(campaign: Begin, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, seed = campaign("disk full at the server")
    faults.server.stop()
    with running(Server(small_disk / "s3", small_disk.with_name("full.log")), monkeypatch) as faults.server:
        for _ in range(FULL_MOMENTS):
            command = faults.command()
            with nearly_full(small_disk, seed.randrange(TOTAL)):
                faults.attempt(command)
            # Once it has room again. Left alone, SeaweedFS takes up to some minutes to see that.
            faults.server.stop()
            faults.server.start()
            faults.again(command)
        faults.end(FULL_MOMENTS)
    assert faults.failed > FULL_MOMENTS / 2
