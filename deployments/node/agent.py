"""The node agent: a small loop beside each Triton that gives it the state that the store asks for.

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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.node.engine_groups import EngineGroups
from deployments.node.facts import Facts
from deployments.node.known import KnownModel, KnownRelease
from deployments.node.loading import Loading, Servers
from deployments.node.reports import Reports
from infra.errors import EnginehouseError, SettingsError, StoreUnavailable, TritonError
from infra.files import remove_tree
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from infra.settings import Settings
from infra.triton.command import Ports
from infra.triton.supervisor import Ensured, Supervisor
from tasks.store.artifact_store import ArtifactStore
from tasks.store.copies import put_unused_aside
from tasks.store.names import collision, is_node
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tasks.triton.placement import placed_models, withdraw_everything, write_public

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 5.0
"""How long what failed for a passing reason waits for its next try."""

_log = logging.getLogger("enginehouse.node")


class Node:
    """One node of a target. `folder` holds all its files; `ports` are its Triton's; `facts` are its machine's.

    With `public_key`, a file or several, it places nothing that was not signed with the pair of one.
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
        *,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self.name = name
        self._target = target
        self._store = store
        self._folder = folder
        self._ports = ports
        self._facts = facts
        self._retry_seconds = retry_seconds
        self._models: dict[str, KnownModel] = {}
        self._models_folder = folder / "models"
        self._copies_folder = folder / "artifacts"
        self._loading = Loading(target, store, self._copies_folder, self._models_folder, public_key, retry_seconds)
        self._loaders = ThreadPoolExecutor(max_workers=4, thread_name_prefix="load")
        self._copied: set[tuple[str, int]] | None = None
        self._reports = Reports(target)
        self._error = ""
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
                    self._read_wanted()
                    for model, known in self._models.items():
                        self._converge(model, known)
                    self._remove_copies()
                    self._error = ""
                except EnginehouseError as error:
                    self._note(error)
                self._report()
                stop.wait(_POLL_SECONDS)
        finally:
            self._loaders.shutdown(wait=False, cancel_futures=True)
            self._triton.stop()
            self._groups.close()

    def _supervise(self) -> None:
        """Have a live Triton, and know what it holds."""
        change = self._triton.ensure()
        if change is Ensured.STARTED:
            # A release that failed for good may be what ended the last Triton, and is not tried again.
            self._models = {name: known.failed_for_good() for name, known in self._models.items()}
            # Placed again from verified copies: what an earlier Triton was given may have been altered since.
            withdraw_everything(self._models_folder)
            self._groups.close()
            self._groups = EngineGroups(self._folder / "groups", self._facts.triton)
        elif change is Ensured.FOUND:
            self._take_over()
        for model, known in self._models.items():
            for number, release in known.releases.items():
                if release.state == "ready" and self._groups.lost(model, number):
                    release.state, release.error, release.retry_at = "loading", "its engine's servers have ended", 0.0
                    _log.warning("%s release %d: %s", model, number, release.error)

    def _take_over(self) -> None:
        """Learn which releases the Triton of an earlier agent holds: one that is ready is not loaded again."""
        ready = {entry.name for entry in self._triton.client.index() if entry.state == "READY"}
        for model in self._target.wanted():
            known = self._models.setdefault(model, KnownModel())
            for number in self._target.releases(model):
                placed = placed_models(self._models_folder, model, number)
                if placed and ready.issuperset(placed):
                    known.releases[number] = KnownRelease(state="ready")
        self._groups.find([(model, number) for model, known in self._models.items() for number in known.releases])

    def _read_wanted(self) -> None:
        """Read what changed of the wanted state: one listing a turn."""
        for model, etag in self._target.wanted().items():
            known = self._models.setdefault(model, KnownModel())
            if problem := collision(model):
                known.error = problem  # an earlier version let a model have this name
            elif known.etag != etag:
                known.wanted, read = self._target.current(model)
                known.etag = read or ""
                known.retry_at = 0.0

    def _converge(self, model: str, known: KnownModel) -> None:
        """Start loading what is wanted, move the public name, unload what is no longer wanted. Never waits."""
        servers = Servers(self._triton.client, self._triton.log, self._groups)
        loaded, public = known.wanted.loaded, known.wanted.public
        if known.wanted.alone and known.public is not None and known.public not in loaded:
            self._withdraw(model, known)
        for number in loaded:
            self._load(servers, model, number, known)
        if public != known.public and time.monotonic() >= known.retry_at and public in loaded:
            release = known.releases.get(public)
            if release is not None and release.state == "ready":
                self._publish(model, known, public)
            elif release is not None:
                known.error = release.error
        for number, release in list(known.releases.items()):
            if release.busy:
                continue
            if release.state == "unloading" and not release.error:
                del known.releases[number]
            elif number not in loaded and number != known.public and release.due:
                release.state, release.error, release.retry_at = "unloading", "", None
                release.loader = self._loaders.submit(self._loading.unload, servers, model, number, release)

    def _load(self, servers: Servers, model: str, number: int, known: KnownModel) -> None:
        """Start loading a release that is not loaded yet, if there is room, or whose next try is due."""
        release = known.releases.get(number)
        if release is None:
            if known.wanted.alone and not known.releases.keys() <= {number}:
                return
            release = known.releases[number] = KnownRelease()
        elif release.retry_at is None or not release.due or release.state == "unloading":
            return
        release.state, release.retry_at = "loading", None
        release.loader = self._loaders.submit(self._loading.load, servers, model, number, known, release)

    def _publish(self, model: str, known: KnownModel, number: int) -> None:
        write_public(self._models_folder, model, number)
        try:
            self._triton.client.load(model)
        except TritonError as error:
            known.error, known.retry_at = str(error), time.monotonic() + self._retry_seconds
            return
        known.public, known.error = number, ""
        _log.info("%s answers with release %d", model, number)

    def _withdraw(self, model: str, known: KnownModel) -> None:
        """Take the public name away: its release has to make room, and would take the name with it in mid-answer."""
        try:
            self._triton.client.unload(model)
        except TritonError as error:
            known.error = str(error)  # the next turn tries again, and other models have theirs
            return
        known.public = None
        _log.info("%s answers nobody until its next release is ready", model)

    def _remove_copies(self) -> None:
        """Remove the copies of artifacts that none of this node's releases uses, whenever these have changed.

        This runs in the thread that starts the loaders, so that no loader has found a copy that goes, and not while
        Triton holds a release that is still to be unloaded.
        """
        releases = {(model, number) for model, known in self._models.items() for number in known.used()}
        if releases == self._copied:
            return
        self._copied = releases
        repositories = [self._target.intent(model, number).repository for model, number in releases]
        for folder in put_unused_aside(self._store.bucket, repositories, self._copies_folder):
            _log.info("%s is used by no release any more and is removed", folder.name)
            self._loaders.submit(remove_tree, folder)

    def _report(self) -> None:
        memory = psutil.virtual_memory()
        report = NodeReport(
            node=self.name,
            target=self._target.name,
            http=f"{self._ports.address}:{self._ports.http}",
            grpc=f"{self._ports.address}:{self._ports.grpc}",
            triton_pid=self._triton.pid,
            memory_total_bytes=memory.total,
            memory_available_bytes=memory.available,
            machine=self._facts.machine(),
            models={name: known.report() for name, known in self._models.items()},
            error=self._error,
        )
        try:
            self._reports.write(report)
        except EnginehouseError as error:
            self._note(error)

    def _note(self, error: EnginehouseError) -> None:
        """Keep an error for the report, and log it once."""
        if str(error) != self._error:
            _log.warning("%s", error)
        self._error = str(error)


def run_node(settings: Settings, environment: Mapping[str, str], *, name: str = "", target: str = "") -> None:
    """Run a node until SIGTERM or SIGINT. Raises SettingsError if something is missing on this machine.

    The ports come from ENGINEHOUSE_TRITON_HTTP, ENGINEHOUSE_TRITON_GRPC and ENGINEHOUSE_NODE_METRICS_PORT.
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
    name = name or platform.node()
    if not is_node(name):
        raise SettingsError(f"a node cannot be called '{name}'", hint="give it a plain name: --name", code="node-name")
    bucket = Bucket.at(settings.store)
    with suppress(StoreUnavailable):  # the node goes on with what it has
        require_conditional_writes(bucket)
    node = Node(
        name,
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
