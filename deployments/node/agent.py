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

from deployments.node.asking import patience
from deployments.node.copies import Copies, remove
from deployments.node.engine_groups import EngineGroups
from deployments.node.facts import Facts
from deployments.node.folder import only_agent
from deployments.node.health import Health, HealthServer, ModelHealth
from deployments.node.known import GIVEN_UP_FAULTS, KnownModel, KnownRelease
from deployments.node.loading import Loading, Servers
from deployments.node.orphans import Orphans
from deployments.node.reports import Reports, instance
from deployments.node.wanted import Wanted
from deployments.node.watching import Watch, Watched
from infra.errors import EnginehouseError, StoreUnavailable
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from infra.settings import Settings
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.supervisor import Ensured, Supervisor
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tasks.triton.config import RELEASE
from tasks.triton.placement import release_names, withdraw_everything

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 5.0
"""How long what failed for a passing reason waits for its next try."""
_START_AGAIN_SECONDS = 1.0
_STUCK_LOADS = 2
_RESTART_SECONDS = 3600.0
"""How seldom Triton is ended for the sake of one release: the others go with it."""
_PROBE_SECONDS = 2.0
"""How long the store may take at the start to show what it can: without it, the node begins with what it has."""
_STILL_SECONDS = 10.0
"""A loop that has made no turn for so long stands still, and what it said last is not true any more."""

_log = logging.getLogger("enginehouse.node")


class Node:
    """One node of a target. `folder` holds all its files; `ports` are its Triton's; `facts` are its machine's.

    With `public_key`, a file, it places nothing that was not signed with its pair. With `health_port` it says there
    whether its models answer.
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
        self._loading = Loading(self._copies, self._models_folder, retry_seconds)
        # Loads wait for the store and for Triton; what moves a name, unloads or removes must not wait behind them.
        self._loaders = ThreadPoolExecutor(max_workers=16, thread_name_prefix="load")
        self._movers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="move")
        self._wanted = Wanted(target, folder / "wanted.json")
        self._reports = Reports(target)
        self._watch = Watch(TritonClient(f"127.0.0.1:{ports.metrics}"))
        self._copied: frozenset[tuple[str, int]] | None = None
        self._error = ""
        self._ensuring: Future[Ensured] | None = None
        self._start_at = 0.0
        self._condemned = ""
        self._restarted: dict[str, float] = {}
        self._health_port = health_port
        self._turned: tuple[Health, float] | None = None
        self._stopping = False
        self._health_server = HealthServer(self._health, ports.bind, health_port)
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
            for part in (self._wanted, self._reports, self._watch, self._health_server):
                part.start()
            try:
                while not stop.wait(_POLL_SECONDS):
                    self._turn()
                    if self._reports.refused is not None:
                        raise self._reports.refused
            finally:
                self._end()

    def _end(self) -> None:
        self._stopping = True  # the health address says so while running requests end
        self._wanted.stop()
        self._watch.stop()
        for pool in (self._loaders, self._movers):
            pool.shutdown(wait=False, cancel_futures=True)
        self._triton.stop()
        self._groups.close()
        self._reports.stop()
        self._health_server.stop()

    def _turn(self) -> None:
        problems: list[str] = []
        try:
            self._follow()
            if self._supervise():
                self._converge()
                self._orphans.look(self._triton.client, self._models, self._movers, fresh=self._wanted.reading.fresh)
                self._remove_copies()
            else:
                problems.append(f"Triton does not run: {self._condemned or 'it is being started'}")
        except Exception as error:
            if not isinstance(error, EnginehouseError | OSError):
                _log.exception("a turn failed")
            problems.append(" ".join(str(error).split()))
        problems += [self._wanted.reading.error, self._reports.error]
        self._note("; ".join(filter(None, problems)))
        self._turned = self._health_now(), time.monotonic()
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
            self._models = {name: known.after_triton() for name, known in self._models.items()}
            self._orphans = Orphans(self._models_folder)
            # Placed again from verified copies: what an earlier Triton was given may have been altered since.
            withdraw_everything(self._models_folder)
            self._groups.close()
            self._groups = EngineGroups(self._folder / "groups", self._facts.triton)
        elif change is Ensured.FOUND:
            self._groups.find(self._orphans.find(self._triton.client))
        return True

    def _ensure(self, *, kill: bool) -> Ensured:
        if kill:
            self._triton.kill()
        return self._triton.ensure()

    def _follow(self) -> None:
        """Take over what the store wants, as far as it was read."""
        reading = self._wanted.reading
        for model in reading.models.keys() | reading.errors.keys():
            known = self._models.setdefault(model, KnownModel())
            known.unread = reading.errors.get(model, "")
            if (wanted := reading.models.get(model)) is None:
                continue
            if known.etag != wanted.etag:
                known.retry_at = 0.0
                public = known.releases.get(wanted.current.public or 0)
                if public is not None and public.ended_triton and public.state == "failed":
                    public.retry_at, public.ended_triton = 0.0, 1
            known.etag, known.wanted, known.intents = wanted.etag, wanted.current, wanted.intents
            for (unread, number), why in reading.unread.items():
                if unread == model and number not in known.releases and number in known.wanted.loaded:
                    known.releases[number] = KnownRelease("failed", why, retry_at=0.0, faults=GIVEN_UP_FAULTS)
        for model in self._models.keys() - reading.models.keys() if reading.fresh else ():
            known = self._models[model]
            known.wanted = known.wanted.model_copy(update={"public": None, "previous": None, "candidates": ()})
            if not known.releases and known.public is None and not known.moving and not known.unread:
                del self._models[model]
        self._wanted.hold(frozenset((model, n) for model, known in self._models.items() for n in known.releases))

    def _converge(self) -> None:
        servers = Servers(self._triton.client, self._triton.log, self._groups)
        for model, known in self._models.items():
            try:
                self._mend(model, known)
                self._move(servers, model, known)
            except Exception as error:  # the next model has its turn
                _log.exception("%s could not be brought to what is wanted", model)
                known.error = " ".join(str(error).split())
        self._load_suspect(servers)
        busy = any(release.busy for known in self._models.values() for release in known.releases.values())
        self._watch.see(self._triton.client, tuple(self._watched()), busy=busy)

    def _mend(self, model: str, known: KnownModel) -> None:
        """Have releases loaded again that do not answer any more, and Triton started again where that did not help."""
        for number, release in known.releases.items():
            if release.state != "ready" or release.busy:
                continue
            if self._groups.lost(model, number):
                release.lost = "its engine's servers have ended"
            elif release.lost:
                release.how = "again"
            if not release.lost:
                continue
            _log.warning("%s release %d is loaded again: %s", model, number, release.lost)
            release.again(release.lost)
            if known.public == number:
                known.public = None  # the name goes with its release, and has to be loaded again
        public = known.releases.get(known.wanted.public or 0)
        if public is None or public.busy or public.stuck < _STUCK_LOADS:
            return
        name = f"{model} release {known.wanted.public}"
        if time.monotonic() - self._restarted.get(name, -_RESTART_SECONDS) > _RESTART_SECONDS:
            self._restarted[name] = time.monotonic()
            self._condemned = f"{name} can be loaded again only by another Triton"

    def _move(self, servers: Servers, model: str, known: KnownModel) -> None:
        """Start loading what is wanted, move the public name, unload what is no longer wanted."""
        loaded, public = known.wanted.loaded, known.wanted.public
        may_move = not known.moving and time.monotonic() >= known.retry_at
        if (
            known.public is not None
            and known.public not in loaded
            and (known.wanted.alone or public is None)
            and may_move
        ):
            # Its release has to make room, and would take the name with it in mid-answer.
            known.mover = self._movers.submit(self._loading.withdraw, servers, model, known)
        for number in loaded:
            self._load(servers, model, number, known)
        if public == known.public:
            known.error = ""
        elif public is not None and public in loaded and (release := known.releases.get(public)) is not None:
            if release.state != "ready":
                known.error = release.error
            elif may_move:
                known.mover = self._movers.submit(self._loading.publish, servers, model, public, known)
        for number, release in list(known.releases.items()):
            if release.busy:
                continue
            if release.state == "unloading" and not release.error:
                del known.releases[number]
            elif number not in loaded and number != known.public and release.due and not known.moving:
                release.state, release.error, release.retry_at = "unloading", "", None
                release.loader = self._movers.submit(self._loading.unload, servers, model, number, release)

    def _load(self, servers: Servers, model: str, number: int, known: KnownModel) -> None:
        """Start loading a release that is not loaded yet, if there is room, or whose next try is due."""
        release = known.releases.get(number)
        if number not in known.intents:
            return
        if release is None:
            if known.wanted.alone and not known.releases.keys() <= {number}:
                return
            release = known.releases[number] = KnownRelease()
            if self._orphans.adopt(model, number):
                release.how = "confirm"
        elif release.busy or release.retry_at is None or not release.due or release.ended_triton:
            return
        elif release.state == "unloading" and not release.error:
            return  # it is unloaded, and the next turn begins anew
        self._start_loading(servers, model, number, known, release)

    def _load_suspect(self, servers: Servers) -> None:
        """Load one release that may have ended Triton, by itself: when nothing else is loaded."""
        releases = [(m, n, known, r) for m, known in self._models.items() for n, r in known.releases.items()]
        if any(release.busy for _, _, _, release in releases):
            return
        for model, number, known, release in releases:
            due = release.ended_triton and release.retry_at is not None and release.due
            if due and release.state != "ready" and number in known.wanted.loaded and number in known.intents:
                self._start_loading(servers, model, number, known, release)
                return

    def _start_loading(
        self, servers: Servers, model: str, number: int, known: KnownModel, release: KnownRelease
    ) -> None:
        how = {"load": self._loading.load, "again": self._loading.load_again, "confirm": self._loading.confirm}
        work, release.how = how[release.how], "load"
        release.state, release.retry_at, release.cut_off = "loading", None, False
        release.loader = self._loaders.submit(work, servers, model, number, known.intents[number], known, release)

    def _watched(self) -> list[Watched]:
        found: list[Watched] = []
        for model, known in self._models.items():
            for number, release in known.releases.items():
                if release.state == "ready" and not release.busy and number in known.wanted.loaded:
                    name = release_names(model, number)[RELEASE]
                    public = known.public == number and not known.moving
                    seconds = patience(known.intents.get(number))
                    found.append(Watched(known, release, name, model if public else name, seconds))
        return found

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

    def _health_now(self) -> Health:
        reading = self._wanted.reading
        models: dict[str, ModelHealth] = {}
        for name, known in sorted(self._models.items()):
            wanted = known.wanted.public
            if wanted is None and not known.unread:
                continue
            release = known.releases.get(wanted or 0)
            is_ready = known.public == wanted and release is not None and release.state == "ready" and known.answered
            models[name] = ModelHealth(
                ready=is_ready,
                answered=known.answered,
                given_up=known.given_up,
                wanted=wanted,
                public=known.public,
                error=known.error or known.unread,
            )
        runs = self._ensuring is None and not self._condemned and self._triton.alive
        known_state = reading.fresh or bool(reading.models)
        return Health(
            node=self.name,
            target=self._target.name,
            ready=runs and known_state and all(model.answered or model.given_up for model in models.values()),
            error=self._error,
            models=models,
        )

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
            models={name: known.report() for name, known in self._models.items()},
            error=self._error,
            instance=self._instance,
            health=f"http://{self._ports.address}:{self._health_port}/ready" if self._health_port else "",
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
    with suppress(StoreUnavailable):  # the node goes on with what it has
        require_conditional_writes(bucket.impatient(_PROBE_SECONDS))
    node = Node(
        name or platform.node(),
        Target(bucket, target or settings.target),
        ArtifactStore(bucket),
        settings.home / "node",
        ports,
        Facts.of(settings),
        settings.signing_public_key,
        health_port=int(environment.get("ENGINEHOUSE_NODE_HEALTH_PORT") or 0),
    )
    node.run(stop)


def main() -> None:
    from infra import settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings.activate()
    run_node(settings.load(), os.environ)


if __name__ == "__main__":
    main()
