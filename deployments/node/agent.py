"""The node agent: a small loop beside each Triton that makes it what the store says it should be.

It reads the wanted state, brings releases to its own disk (verified), writes configurations, calls Triton on
loopback and reports. Nothing else touches its Triton. It starts Triton, starts it again when it dies, and finds
a running one again when it was itself killed.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deployments.node.engine_groups import EngineGroups
from deployments.node.facts import Facts
from infra.errors import EnginehouseError, StoreUnavailable, TritonError
from infra.files import remove_tree
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from infra.settings import Settings
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.supervisor import Ensured, Supervisor
from tasks.store.artifact import ArtifactRef, ArtifactStore
from tasks.store.copies import put_unused_aside
from tasks.store.verify import bring
from tasks.targets.current import Current
from tasks.targets.node_report import REPORT_SECONDS, ModelReport, NodeReport, ReleaseReport
from tasks.targets.target import Target
from tasks.triton.placement import place_release, placed_models, withdraw_everything, withdraw_release, write_public
from tasks.trtllm.backend.load_failures import known_load_failure

POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0
"""How long a release that failed for a passing reason waits for its next try."""
_UNLOAD_SECONDS = 600.0
"""How long running requests may keep a release; Triton can also lose one for good."""

# Of a report; what changes all the time is no reason to write one.
_CHANGES_ALWAYS = {
    "written": True,
    "memory_available_bytes": True,
    "machine": {"gpus": {"__all__": {"free_bytes": True}}},
}

_log = logging.getLogger("enginehouse.node")


@dataclass
class _Release:
    """What this node knows of one release. Written by its loader thread until that is done, then by the loop."""

    state: str = "loading"
    error: str = ""
    hint: str = ""
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

    def failed_for_good(self) -> dict[int, _Release]:
        return {
            number: release
            for number, release in self.releases.items()
            if release.state == "failed" and release.retry_at is None
        }


class Node:
    """One node of a target. `folder` holds all its files; `ports` are its Triton's; `facts` are its machine's.

    With `public_key`, a file, it places nothing that was not signed with its pair.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        store: ArtifactStore,
        folder: Path,
        ports: Ports,
        facts: Facts,
        public_key: str = "",
    ) -> None:
        self.name = name
        self._target = target
        self._store = store
        self._folder = folder
        self._public_key = public_key
        self._models_folder = folder / "models"
        self._ports = ports
        self._models: dict[str, _Model] = {}
        self._loaders = ThreadPoolExecutor(max_workers=4, thread_name_prefix="load")
        self._copied: set[tuple[str, int]] | None = None
        self._reported = b""
        self._reported_at = 0.0
        self._error = ""
        self._facts = facts
        self._triton = Supervisor(
            folder, self._models_folder, ports, root=facts.triton, orchestrated_gpus=facts.orchestrated_gpus
        )
        self._groups = EngineGroups(folder / "groups", facts.triton)

    def run(self, stop: threading.Event) -> None:
        """Converge until `stop` is set, then end Triton, and the servers of engines that it calls."""
        self._models_folder.mkdir(parents=True, exist_ok=True)
        try:
            while not stop.is_set():
                try:
                    self._supervise()
                    self._look()
                    for model in self._models:
                        self._converge(model)
                    self._let_go_of_copies()
                    self._error = ""
                except EnginehouseError as error:
                    if str(error) != self._error:
                        _log.warning("%s", error)
                    self._error = str(error)
                self._report()
                stop.wait(POLL_SECONDS)
        finally:
            self._loaders.shutdown(wait=False, cancel_futures=True)
            self._triton.stop()
            self._groups.close()

    def _supervise(self) -> None:
        """Have a live Triton, and know what it holds."""
        change = self._triton.ensure()
        if change is Ensured.STARTED:
            # What failed for good may be what ended the last one, and is not tried again.
            self._models = {name: _Model(releases=known.failed_for_good()) for name, known in self._models.items()}
            # Placed again from verified copies: what an earlier Triton was given may have been altered since.
            withdraw_everything(self._models_folder)
            self._groups.close()
            self._groups = EngineGroups(self._folder / "groups", self._facts.triton)
        elif change is Ensured.FOUND:
            # What it holds is known only to it: releases that are ready are taken over, not loaded again.
            ready = {entry.name for entry in self._triton.client.index() if entry.state == "READY"}
            for model in self._target.wanted():
                known = self._models.setdefault(model, _Model())
                for release in self._target.releases(model):
                    placed = placed_models(self._models_folder, model, release)
                    if placed and ready.issuperset(placed):
                        known.releases[release] = _Release(state="ready")
            self._groups.find([(model, number) for model, known in self._models.items() for number in known.releases])
        for model, known in self._models.items():
            for number, release in known.releases.items():
                if release.state == "ready" and self._groups.lost(model, number):
                    release.state, release.error, release.retry_at = "loading", "its engine's servers have ended", 0.0
                    _log.warning("%s release %d: %s", model, number, release.error)

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
        loaded, public = known.wanted.loaded, known.wanted.public
        # Those of now, for threads that may outlive them.
        servers = self._triton.client, self._groups
        if known.wanted.alone and known.public is not None and known.public not in loaded:
            self._withdraw(model, known)
        for number in loaded:
            release = known.releases.get(number)
            again = release is not None and release.retry_at is not None and _due(release)
            room = not known.wanted.alone or known.releases.keys() <= {number}
            if (release is None and room) or (release is not None and again and release.state != "unloading"):
                release = known.releases[number] = release or _Release()
                release.state, release.retry_at = "loading", None
                release.loader = self._loaders.submit(self._load, *servers, model, number, release)
        due = public != known.public and time.monotonic() >= known.retry_at
        if due and public in loaded and public in known.releases:
            if known.releases[public].state == "ready":
                self._publish(model, known, public)
            else:
                known.error = known.releases[public].error
        for number, release in list(known.releases.items()):
            if release.loader is not None and not release.loader.done():
                continue
            if release.state == "unloading" and not release.error:
                del known.releases[number]
            elif number not in loaded and number != known.public and _due(release):
                release.state, release.error, release.retry_at = "unloading", "", None
                release.loader = self._loaders.submit(self._let_go, *servers, model, number, release)

    def _publish(self, model: str, known: _Model, release: int) -> None:
        write_public(self._models_folder, model, release)
        try:
            self._triton.client.load(model)
        except TritonError as error:
            known.error, known.retry_at = str(error), time.monotonic() + RETRY_SECONDS
            return
        known.public, known.error = release, ""
        _log.info("%s answers with release %d", model, release)

    def _withdraw(self, model: str, known: _Model) -> None:
        """Take the public name away: its release has to make room, and would take the name with it in mid-answer."""
        try:
            self._triton.client.unload(model)
        except TritonError as error:
            known.error = str(error)  # the next turn tries again, and other models have theirs
            return
        known.public = None
        _log.info("%s answers nobody until its next release is ready", model)

    def _load(self, client: TritonClient, groups: EngineGroups, model: str, number: int, release: _Release) -> None:
        """In a thread of its own: bring, place and load one release."""
        try:
            intent = self._target.intent(model, number)
            repository, engine = self._bring(intent.repository)
            group = groups.of(model, number, intent.ranks) if intent.ranks else None
            server = group.server if group is not None else None
            place_release(repository, engine, self._models_folder, model, number, server)
            if group is not None:
                group.start()
            self._load_models(client, placed_models(self._models_folder, model, number))
        except Exception as error:
            retryable = isinstance(error, EnginehouseError) and error.retryable
            # A public release is always tried again: nothing else can answer for it.
            public = self._models.get(model, _Model()).wanted.public == number
            if retryable or public:
                release.retry_at = time.monotonic() + RETRY_SECONDS
            release.error, release.state = str(error), "loading" if retryable and not public else "failed"
            release.hint = error.hint if isinstance(error, EnginehouseError) else ""
            _log.exception("%s release %d could not be loaded", model, number)
            return
        release.error, release.hint, release.starts = "", "", release.starts + 1
        release.state = "ready"
        _log.info("%s release %d is ready", model, number)

    def _load_models(self, client: TritonClient, names: Sequence[str]) -> None:
        """Load each in turn, until Triton says that all of them answer. Raises TritonError, named where it is known."""
        log = self._triton.log
        start = log.end()
        try:
            for name in names:
                client.load(name)
        except TritonError as error:
            if (known := known_load_failure(error.message, log.since(start))) is None:
                raise
            raise known from error
        if silent := [name for name in names if not client.ready(name)]:
            raise TritonError(
                f"loaded, but not ready: {', '.join(silent)}",
                hint=f"see {log.path}",
                code="triton-not-ready",
                retryable=True,
            )

    def _bring(self, reference: str) -> tuple[Path, Path]:
        """The repository and its engine on this node's disk, every byte checked."""
        here, key = self._folder / "artifacts", self._public_key
        repository, folder = bring(self._store, ArtifactRef.parse(reference), here, key)
        _, engine = bring(self._store, ArtifactRef.parse(repository.manifest.inputs["engine"]), here, key)
        return folder, engine

    def _let_go(self, client: TritonClient, groups: EngineGroups, model: str, number: int, release: _Release) -> None:
        """In a thread of its own: unload one release, wait until its requests have ended, remove its folders."""
        names = placed_models(self._models_folder, model, number)
        try:
            for name in reversed(names):
                client.unload(name)
            deadline = time.monotonic() + _UNLOAD_SECONDS
            while any(entry.name in names and entry.state in ("UNLOADING", "READY") for entry in client.index()):
                if time.monotonic() > deadline:
                    groups.end(model, number)  # an engine that answers no more is what its callers wait for
                    raise TritonError("Triton does not let it go", code="triton-unload")
                time.sleep(POLL_SECONDS)
            groups.end(model, number)
            withdraw_release(self._models_folder, model, number)
        except (EnginehouseError, OSError) as error:
            release.error, release.retry_at = str(error), time.monotonic() + RETRY_SECONDS
            _log.exception("%s release %d could not be unloaded", model, number)
            return
        _log.info("%s release %d is unloaded", model, number)

    def _let_go_of_copies(self) -> None:
        """Remove the copies of artifacts that none of this node's releases uses, whenever these have changed.

        Here, in the thread that starts the loaders, so that none has found what goes; and not while Triton holds a
        release that is still to be let go.
        """
        releases = {
            (model, number)
            for model, known in self._models.items()
            for number in (known.public, known.wanted.public, known.wanted.previous, *known.wanted.candidates)
            if number is not None
        }
        releases |= {(model, number) for model, known in self._models.items() for number in known.releases}
        if releases == self._copied:
            return
        self._copied = releases
        repositories = [self._target.intent(model, number).repository for model, number in releases]
        for folder in put_unused_aside(self._store.bucket, repositories, self._folder / "artifacts"):
            _log.info("%s is used by no release any more, and goes", folder.name)
            self._loaders.submit(remove_tree, folder)

    # Reports

    def _report(self) -> None:
        memory = psutil.virtual_memory()
        models = {
            name: ModelReport(
                public=known.public,
                error=known.error,
                releases={
                    number: ReleaseReport.model_validate(
                        {
                            "state": release.state,
                            "error": release.error,
                            "hint": release.hint,
                            "starts": release.starts,
                        }
                    )
                    for number, release in known.releases.items()
                },
            )
            for name, known in self._models.items()
        }
        report = NodeReport(
            node=self.name,
            target=self._target.name,
            http=f"{self._ports.address}:{self._ports.http}",
            grpc=f"{self._ports.address}:{self._ports.grpc}",
            triton_pid=self._triton.pid,
            memory_total_bytes=memory.total,
            memory_available_bytes=memory.available,
            machine=self._facts.machine(),
            models=models,
            error=self._error,
        )
        state = report.model_dump_json(exclude=_CHANGES_ALWAYS).encode()
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


def _due(release: _Release) -> bool:
    return release.retry_at is None or time.monotonic() >= release.retry_at


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
        address=settings.node_address,
    )
    bucket = Bucket.at(settings.store)
    with suppress(StoreUnavailable):  # where it is away the node goes on with what it has
        require_conditional_writes(bucket)
    node = Node(
        name or platform.node(),
        Target(bucket, target or settings.target),
        ArtifactStore(bucket),
        settings.home / "node",
        ports,
        Facts.of(settings),
        settings.signing_public_key,
    )
    node.run(stop)


def main() -> None:
    from infra import settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings.activate()
    run_node(settings.load(), os.environ)


if __name__ == "__main__":
    main()
