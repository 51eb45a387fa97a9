"""The node agent: a small loop beside each Triton that makes it what the store says it should be.

It reads the wanted state, brings releases to its own disk (verified), writes configurations, calls Triton on
loopback and reports. Nothing else touches its Triton. It starts Triton, starts it again when it dies, and finds
a running one again when it was itself killed.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.errors import EnginehouseError, TritonError
from infra.processes import terminate
from infra.s3 import Bucket
from infra.settings import Settings
from infra.triton.client import TritonClient
from infra.triton.server import Ports, launch
from tasks.artifact import ArtifactRef, ArtifactStore
from tasks.records import Current, ModelReport, NodeReport, ReleaseReport, Target
from tasks.triton.repository import place_release, release_names, withdraw_release, write_public

POLL_SECONDS = 0.2
REPORT_SECONDS = 5.0
"""A report is written when something changed, and this often as a sign of life."""
RETRY_SECONDS = 5.0
"""How long a release that failed for a passing reason waits for its next try."""
_READY_SECONDS = 60.0
# Engines on the CPU share cores with each other and with builds. Threads that spin while they wait then halt one
# another: 64 tokens beside two busy processes on 2 cores ran at 1 to 2 tokens/s spinning, at 23 to 60 waiting. Alone,
# waiting costs about a third (95 to 150 against 80 to 85).
_OPENMP_WAIT = "PASSIVE"

_log = logging.getLogger("enginehouse.node")


@dataclass
class _Release:
    """What this node knows of one release. Written by its loader thread until that is done, then by the loop."""

    state: str = "loading"
    error: str = ""
    starts: int = 0
    retry_at: float | None = None
    loader: Future[None] | None = None


@dataclass
class _Model:
    etag: str = ""
    wanted: Current = field(default_factory=Current)
    public: int | None = None
    error: str = ""
    retry_at: float = 0.0
    releases: dict[int, _Release] = field(default_factory=dict[int, _Release])


class Node:
    """One node of a target. `folder` holds all its files; `ports` are its Triton's."""

    def __init__(self, name: str, target: Target, store: ArtifactStore, folder: Path, ports: Ports) -> None:
        self.name = name
        self._target = target
        self._store = store
        self._folder = folder
        self._models_folder = folder / "models"
        self._ports = ports
        self._models: dict[str, _Model] = {}
        self._loaders = ThreadPoolExecutor(max_workers=4, thread_name_prefix="load")
        self._reported = b""
        self._reported_at = 0.0
        self._error = ""
        self._process: psutil.Process | None = None
        self._client = TritonClient("127.0.0.1:0")

    def run(self, stop: threading.Event) -> None:
        """Converge until `stop` is set, then end Triton."""
        self._models_folder.mkdir(parents=True, exist_ok=True)
        try:
            while not stop.is_set():
                try:
                    self._supervise()
                    self._look()
                    for model in self._models:
                        self._converge(model)
                    self._error = ""
                except EnginehouseError as error:
                    if str(error) != self._error:
                        _log.warning("%s", error)
                    self._error = str(error)
                self._report()
                stop.wait(POLL_SECONDS)
        finally:
            self._loaders.shutdown(wait=False, cancel_futures=True)
            if self._process is not None:
                terminate(self._process.pid, grace_s=15)
                self._state_file.unlink(missing_ok=True)

    # Triton itself

    @property
    def _state_file(self) -> Path:
        return self._folder / "triton.json"

    def _supervise(self) -> None:
        """Have a live Triton: the one we know, one that an earlier node left, or a new one."""
        if self._process is not None and _alive(self._process):
            return
        known, self._process = self._process, None
        if known is None and self._found_again():
            return
        if known is not None:
            _log.warning("Triton (pid %d) is gone; starting it again", known.pid)
            terminate(known.pid, grace_s=2)  # its Python stubs outlive it for a while and hold memory
        self._start()

    def _found_again(self) -> bool:
        try:
            state = json.loads(self._state_file.read_text())
            process = psutil.Process(state["pid"])
            if abs(process.create_time() - state["created"]) > 1 or not _alive(process):
                return False
        except (FileNotFoundError, psutil.NoSuchProcess):
            return False
        client = self._new_client(state["key"])
        if not client.live():
            terminate(process.pid, grace_s=5)
            return False
        self._process, self._client = process, client
        # What it holds is known only to it: releases that are ready are taken over, not loaded again.
        ready = {entry.name for entry in client.index() if entry.state == "READY"}
        for model in self._target.wanted():
            known = self._models.setdefault(model, _Model())
            for release in self._target.releases(model):
                if all(name in ready for name in release_names(model, release).values()):
                    known.releases[release] = _Release(state="ready")
        _log.info("found Triton again (pid %d)", process.pid)
        return True

    def _start(self) -> None:
        key = secrets.token_urlsafe(32)
        work = self._folder / "triton"
        work.mkdir(parents=True, exist_ok=True)
        process = launch(self._models_folder, work, self._folder / "triton.log", ports=self._ports, control_key=key)
        client = self._new_client(key)
        deadline = time.monotonic() + _READY_SECONDS
        while not client.live():
            if process.poll() is not None or time.monotonic() > deadline:
                terminate(process, grace_s=2)
                raise TritonError(
                    "Triton did not start", hint=f"see {self._folder / 'triton.log'}", code="triton-start"
                )
            time.sleep(0.05)
        self._process, self._client = psutil.Process(process.pid), client
        state = {"pid": process.pid, "created": self._process.create_time(), "key": key}
        fresh = self._state_file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(state, file)
        fresh.replace(self._state_file)
        # A new Triton holds nothing: everything wanted is loaded again.
        self._models.clear()
        _log.info("Triton runs (pid %d)", process.pid)

    def _new_client(self, key: str) -> TritonClient:
        return TritonClient(f"127.0.0.1:{self._ports.http}", key=key)

    # Wanted state

    def _look(self) -> None:
        """Read what changed of the wanted state: one listing a turn."""
        for model, etag in self._target.wanted().items():
            known = self._models.setdefault(model, _Model())
            if known.etag != etag:
                known.wanted, read = self._target.current(model)
                known.etag = read or ""
                known.retry_at = 0.0

    def _converge(self, model: str) -> None:
        """Start loading what is wanted, move the public name, let go what is no longer wanted. Never waits."""
        known = self._models[model]
        for number in known.wanted.loaded:
            release = known.releases.get(number)
            due = release is not None and release.retry_at is not None and time.monotonic() >= release.retry_at
            if release is None or (due and release.state != "unloading"):
                release = known.releases[number] = release or _Release()
                release.state, release.retry_at = "loading", None
                release.loader = self._loaders.submit(self._load, self._client, model, number, release)
        wanted = known.wanted.public
        if wanted is not None and wanted != known.public and time.monotonic() >= known.retry_at:
            ready = known.releases[wanted].state == "ready"
            if ready:
                self._publish(model, known, wanted)
            else:
                known.error = known.releases[wanted].error
        for number, release in list(known.releases.items()):
            if release.loader is not None and not release.loader.done():
                continue
            if release.state == "unloading" and not release.error:
                del known.releases[number]
            elif number not in known.wanted.loaded and number != known.public:
                release.state, release.error = "unloading", ""
                release.loader = self._loaders.submit(self._let_go, self._client, model, number, release)

    def _publish(self, model: str, known: _Model, release: int) -> None:
        write_public(self._models_folder, model, release)
        try:
            self._client.load(model)
        except TritonError as error:
            known.error, known.retry_at = str(error), time.monotonic() + RETRY_SECONDS
            return
        known.public, known.error = release, ""
        _log.info("%s answers with release %d", model, release)

    def _load(self, client: TritonClient, model: str, number: int, release: _Release) -> None:
        """In a thread of its own: bring, place and load one release."""
        try:
            intent = self._target.intent(model, number)
            repository, engine = self._bring(intent.repository)
            place_release(repository, engine, self._models_folder, model, number)
            for name in release_names(model, number).values():
                client.load(name)
        except Exception as error:
            retryable = isinstance(error, EnginehouseError) and error.retryable
            # A public release is always tried again: nothing else can answer for it.
            public = self._models.get(model, _Model()).wanted.public == number
            if retryable or public:
                release.retry_at = time.monotonic() + RETRY_SECONDS
            release.error, release.state = str(error), "loading" if retryable and not public else "failed"
            _log.exception("%s release %d could not be loaded", model, number)
            return
        release.error, release.starts = "", release.starts + 1
        release.state = "ready"
        _log.info("%s release %d is ready", model, number)

    def _bring(self, reference: str) -> tuple[Path, Path]:
        """The repository and its engine on this node's disk, every byte checked."""
        repository = self._store.need(ArtifactRef.parse(reference))
        engine = self._store.need(ArtifactRef.parse(repository.manifest.inputs["engine"]))
        folders: list[Path] = []
        for artifact in (repository, engine):
            folder = self._folder / "artifacts" / artifact.ref.identity / artifact.manifest.attempt
            if not folder.is_dir():
                self._store.download(artifact, folder)
            folders.append(folder)
        return folders[0], folders[1]

    def _let_go(self, client: TritonClient, model: str, number: int, release: _Release) -> None:
        """In a thread of its own: unload one release, wait until its requests have ended, remove its folders."""
        names = set(release_names(model, number).values())
        try:
            for name in reversed(release_names(model, number).values()):
                client.unload(name)
            while any(entry.name in names and entry.state in ("UNLOADING", "READY") for entry in client.index()):
                time.sleep(0.1)
            withdraw_release(self._models_folder, model, number)
        except (EnginehouseError, OSError) as error:
            release.error = str(error)
            _log.exception("%s release %d could not be unloaded", model, number)
            return
        _log.info("%s release %d is unloaded", model, number)

    # Reports

    def _report(self) -> None:
        memory = psutil.virtual_memory()
        models = {
            name: ModelReport(
                public=known.public,
                error=known.error,
                releases={
                    number: ReleaseReport.model_validate(
                        {"state": release.state, "error": release.error, "starts": release.starts}
                    )
                    for number, release in known.releases.items()
                },
            )
            for name, known in self._models.items()
        }
        report = NodeReport(
            node=self.name,
            target=self._target.name,
            http=f"127.0.0.1:{self._ports.http}",
            grpc=f"127.0.0.1:{self._ports.grpc}",
            triton_pid=self._process.pid if self._process is not None else 0,
            memory_total_bytes=memory.total,
            memory_available_bytes=memory.available,
            models=models,
            error=self._error,
        )
        state = report.model_dump_json(exclude={"written", "memory_available_bytes"}).encode()
        if state == self._reported and time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        try:
            self._target.report(report)
        except EnginehouseError as error:
            if str(error) != self._error:
                _log.warning("%s", error)
            self._error = str(error)
            return
        self._reported, self._reported_at = state, time.monotonic()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_node(settings: Settings, environment: Mapping[str, str], *, name: str = "", target: str = "") -> None:
    """Run a node until SIGTERM or SIGINT. Ports come from ENGINEHOUSE_TRITON_HTTP, …_GRPC and
    ENGINEHOUSE_NODE_METRICS_PORT. Raises SettingsError where something is missing on this machine.
    """
    stop = threading.Event()

    def stop_now(signal_number: int, frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_now)
    ports = Ports(
        http=int(settings.triton_http.rpartition(":")[2]),
        grpc=int(settings.triton_grpc.rpartition(":")[2]),
        metrics=int(environment["ENGINEHOUSE_NODE_METRICS_PORT"]),
    )
    bucket = Bucket.at(settings.store)
    node = Node(
        name or platform.node(),
        Target(bucket, target or settings.target),
        ArtifactStore(bucket),
        settings.home / "node",
        ports,
    )
    node.run(stop)


def main() -> None:
    from infra import settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings.activate()
    run_node(settings.load(), os.environ)


if __name__ == "__main__":
    main()
