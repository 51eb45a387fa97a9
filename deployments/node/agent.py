"""The node agent: a small loop beside each Triton that gives it the state that the store asks for.

It reads the wanted state, brings releases to its own disk (verified), writes configurations, calls Triton on
loopback and reports. Nothing else touches its Triton. It starts Triton, starts it again when it dies or hangs, and
finds a running one again when it was itself killed.

The loop never waits: what may take time runs in a thread, and its outcome is looked at in a later turn. No exception of
one model's work ends a turn for another.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.node.converging import Converging, is_loading, watched
from deployments.node.copies import Copies, remove
from deployments.node.engine_groups import EngineGroups
from deployments.node.facts import Facts
from deployments.node.figures import figures
from deployments.node.folder import only_agent
from deployments.node.health import Health, HealthServer
from deployments.node.known import KnownModel, follow
from deployments.node.loading import Loading, Servers
from deployments.node.memory import Memory
from deployments.node.observing import Observing
from deployments.node.orphans import Orphans
from deployments.node.ports import health_port, ports_of
from deployments.node.reports import Reports, instance
from deployments.node.wanted import Wanted
from deployments.node.watching import Watch
from infra.errors import EnginehouseError, SettingsError, StoreUnavailable
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from infra.settings import Settings
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.supervisor import Ensured, Supervisor
from tasks.store.artifact_store import ArtifactStore
from tasks.store.names import is_node
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tasks.triton.placement import withdraw_everything

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 5.0
"""How long what failed for a passing reason waits for its next try."""
_START_AGAIN_SECONDS = 1.0
_PROBE_SECONDS = 1.0
"""How long the store may take at the start to show what it can: without it, the node begins with what it has."""
_STILL_SECONDS = 10.0
"""A loop that has made no turn for so long stands still, and what it said last is not true any more."""

_log = logging.getLogger("enginehouse.node")


class Node:
    """One node of a target. `folder` holds all its files; `ports` are its Triton's; `facts` are its machine's.

    With `public_key`, a file or several, it places nothing that was not signed with the pair of one. With
    `health_port` it says there whether its models answer.
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
        health_port: int = 0,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self.name = name
        self._target = target
        self._folder = folder
        self._ports = ports
        self._facts = facts
        self._models: dict[str, KnownModel] = {}
        self._models_folder = folder / "models"
        self._copies = Copies(store, folder / "artifacts", public_key)
        # Loads wait for the store and for Triton; what moves a name, unloads or removes must not wait behind them.
        self._loaders = ThreadPoolExecutor(max_workers=16, thread_name_prefix="load")
        self._movers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="move")
        loading = Loading(self._copies, self._models_folder, retry_seconds)
        self._converging = Converging(loading, self._loaders, self._movers)
        self._wanted = Wanted(target, folder / "wanted.json", public_key)
        self._reports = Reports(target)
        metrics = TritonClient(f"127.0.0.1:{ports.metrics}")
        self._watch = Watch(metrics)
        self._observing = Observing(metrics)
        self._memory = Memory(self._models_folder)
        self._copied: frozenset[tuple[str, int]] | None = None
        self._error = ""
        self._ensuring: Future[Ensured] | None = None
        self._start_at = 0.0
        self._condemned = ""
        self._health_port = health_port
        self._turned: tuple[Health, float] | None = None
        self._stopping = False
        self._health_server = HealthServer(self._health, figures, ports.bind, health_port)
        self._instance = ""
        self._triton = Supervisor(
            folder, self._models_folder, ports, root=facts.triton, orchestrated_gpus=facts.orchestrated_gpus
        )
        self._groups = EngineGroups(folder / "groups", facts.triton)
        self._orphans = Orphans(self._models_folder)

    def run(self, stop: threading.Event) -> None:
        """Converge until `stop` is set, then end Triton, and the servers of engines that it calls.

        Raises UsageError `node-folder-taken` if an agent works in the folder already, and `node-name-taken` if another
        node of the target has the name.
        """
        self._models_folder.mkdir(parents=True, exist_ok=True)
        with only_agent(self._folder):
            self._instance = instance(self._folder)
            for left in (*self._copies.unfinished(), self._folder / "placing"):
                remove(left)
            for part in (self._wanted, self._reports, self._watch, self._observing, self._memory, self._health_server):
                part.start()
            try:
                while not stop.wait(_POLL_SECONDS):
                    try:
                        self._turn()
                    except Exception:  # the next turn may do better, and Triton serves on
                        _log.exception("a turn failed")
                    if self._reports.refused is not None:
                        raise self._reports.refused
            finally:
                self._end()

    def _end(self) -> None:
        self._stopping = True  # the health address says so while running requests end
        self._wanted.stop()
        self._watch.stop()
        self._observing.stop()
        self._memory.stop()
        for pool in (self._loaders, self._movers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._triton.stop()
        self._groups.close()
        self._reports.stop()
        self._health_server.stop()

    def _turn(self) -> None:
        problems: list[str] = []
        try:
            reading = self._wanted.reading
            follow(self._models, reading)
            self._wanted.hold(frozenset((model, n) for model, known in self._models.items() for n in known.releases))
            if self._supervise():
                servers = Servers(self._triton.client, self._triton.log, self._groups)
                self._condemned = self._converging.turn(servers, self._orphans, self._models)
                self._watch.see(self._triton.client, watched(self._models), busy=is_loading(self._models))
                self._orphans.look(self._triton.client, self._models, self._movers, fresh=reading.fresh)
                self._remove_copies()
            else:
                problems.append(f"Triton does not run: {self._condemned or 'it is being started'}")
        except Exception as error:
            if not isinstance(error, EnginehouseError | OSError):
                _log.exception("a turn failed")
            problems.append(" ".join(str(error).split()))
        problems += [self._wanted.reading.error, self._reports.error]
        self._note("; ".join(filter(None, problems)))
        runs = self._ensuring is None and not self._condemned and self._triton.alive
        known = {name: model.health() for name, model in sorted(self._models.items()) if model.is_asked_for}
        is_ready = (
            runs and self._wanted.reading.is_known and all(each.answered or each.given_up for each in known.values())
        )
        health = Health(
            node=self.name,
            target=self._target.name,
            ready=is_ready,
            stale=bool(self._wanted.reading.error) or not self._wanted.reading.fresh,
            error=self._error,
            models=known,
        )
        self._turned = health, time.monotonic()
        self._offer()

    def _supervise(self) -> bool:
        """Have a live Triton, and know what it holds. Returns whether one runs."""
        if self._ensuring is None:
            if self._watch.hangs:
                self._condemned = "it hung"
            if self._triton.alive and not self._condemned:
                return True
            if time.monotonic() < self._start_at:
                return False
            self._watch.see(None)
            if self._condemned:
                _log.warning("Triton (pid %d) is ended: %s", self._triton.pid, self._condemned)
            self._ensuring = self._movers.submit(self._ensure, kill=bool(self._condemned))
        if not self._ensuring.done():
            return False
        ensured, self._ensuring, self._condemned = self._ensuring, None, ""
        self._start_at = time.monotonic() + _START_AGAIN_SECONDS
        change = ensured.result()
        if change is Ensured.STARTED:
            self._observing.begin_again()
            self._models = {name: known.after_triton() for name, known in self._models.items()}
            self._orphans = Orphans(self._models_folder)
            self._groups.close()
            self._groups = EngineGroups(self._folder / "groups", self._facts.triton)
            # Placed again from verified copies: what an earlier Triton was given may have been altered since.
            withdraw_everything(self._models_folder)
        elif change is Ensured.FOUND:
            self._groups.find(self._orphans.find(self._triton.client))
        return True

    def _ensure(self, *, kill: bool) -> Ensured:
        if kill:
            self._triton.kill()
        return self._triton.ensure()

    def _remove_copies(self) -> None:
        """Remove the copies of artifacts that none of this node's releases uses, whenever these have changed.

        This runs in the thread that starts the loaders, so that no loader has found a copy that goes.
        """
        if not self._wanted.reading.fresh or not self._orphans.looked:
            return
        used = frozenset((model, number) for model, known in self._models.items() for number in known.used())
        intents = [self._models[model].intents.get(number) for model, number in used]
        if used == self._copied or None in intents:
            return
        known = [intent for intent in intents if intent is not None]
        if (gone := self._copies.remove_unused(known)) is None:
            return
        self._copied = used
        for folder in gone:
            _log.info("%s is used by no release any more and is removed", folder.name)
            self._movers.submit(remove, folder)

    def _health(self) -> Health:
        turned = self._turned
        if turned is None:
            return Health(node=self.name, target=self._target.name, ready=False, error="it starts")
        health, at = turned
        if self._stopping:
            return health.model_copy(update={"ready": False, "error": "it is ending"})
        if (still := time.monotonic() - at) > _STILL_SECONDS:
            return health.model_copy(update={"ready": False, "error": f"its loop has stood still for {still:.0f} s"})
        return health

    def _offer(self) -> None:
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
            models={name: known.report(self._memory.of(name, known.releases)) for name, known in self._models.items()},
            error=self._error,
            instance=self._instance,
            health=f"http://{self._ports.address}:{self._health_port}/ready" if self._health_port else "",
            observed=self._observing.observed({name: frozenset(each.releases) for name, each in self._models.items()}),
        )
        self._reports.offer(report)

    def _note(self, error: str) -> None:
        """Keep an error for the report, and log it once."""
        if error and error != self._error:
            _log.warning("%s", error)
        self._error = error


def run_node(settings: Settings, environment: Mapping[str, str], *, name: str = "", target: str = "") -> None:
    """Run a node until SIGTERM or SIGINT. Raises SettingsError if something is missing on this machine.

    The ports come from ENGINEHOUSE_TRITON_HTTP, ENGINEHOUSE_TRITON_GRPC, ENGINEHOUSE_NODE_METRICS_PORT and
    ENGINEHOUSE_NODE_HEALTH_PORT; without the last there is no health address.
    """
    ports, health = ports_of(settings, environment), health_port(environment)
    name = name or platform.node()
    if not is_node(name):
        raise SettingsError(f"a node cannot be called '{name}'", hint="give it a plain name: --name", code="node-name")
    stop = threading.Event()

    def stop_now(signal_number: int, frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_now)
    bucket = Bucket.at(settings.store)
    with suppress(StoreUnavailable):  # the node goes on with what it has
        require_conditional_writes(bucket.impatient(_PROBE_SECONDS))
    node = Node(
        name,
        Target(bucket, target or settings.target),
        ArtifactStore(bucket),
        settings.home / "node",
        ports,
        Facts.of(settings),
        settings.signing_public_key,
        health_port=health,
    )
    node.run(stop)


def main() -> None:
    from infra import settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings.activate()
    run_node(settings.load(), os.environ)


if __name__ == "__main__":
    main()
