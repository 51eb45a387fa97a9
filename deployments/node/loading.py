"""Bringing one release into Triton, and taking it out again. Each call takes seconds to minutes, in its own thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deployments.node.asking import ask, patience, takes_ids
from deployments.node.copies import Copies
from deployments.node.engine_groups import EngineGroups
from deployments.node.known import KnownModel, KnownRelease
from infra.errors import EnginehouseError, TritonError
from infra.files import remove_tree
from infra.triton.client import TritonClient
from infra.triton.log import Log
from infra.triton.processes import end_model_processes
from tasks.targets.release import Intent
from tasks.triton.config import RELEASE
from tasks.triton.placement import (
    ENGINES,
    place_release,
    placed_folders,
    placed_models,
    release_names,
    withdraw_release,
    write_public,
)
from tasks.trtllm.backend.load_failures import known_load_failure

_UNLOAD_SECONDS = 600.0
"""How long running requests may keep a release; Triton can also lose one for good."""
_PUBLISH_SECONDS = 30.0
"""Triton reads one file."""
_POLL_SECONDS = 0.2
_FIRST_ASKED_AGAIN_SECONDS = (1.0, 2.0, 4.0)
"""Pauses before a release whose engine has servers of its own is asked again: on a busy machine the first connection
between two servers may end before it is made."""
_AT_ONCE = 4
"""Loads at once: each occupies one of Triton's eight HTTP threads until the model is loaded."""

_log = logging.getLogger("enginehouse.node")


@dataclass(frozen=True)
class Servers:
    """The Triton that runs now, its log, and the servers of engines beside it. A loader may outlive them."""

    triton: TritonClient
    log: Log
    groups: EngineGroups


@dataclass(frozen=True)
class Loading:
    """How a node loads its releases from its `copies` into `models`, which is Triton's repository."""

    copies: Copies
    models: Path
    retry_seconds: float
    _room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AT_ONCE))

    def load(
        self, servers: Servers, model: str, number: int, intent: Intent, known: KnownModel, release: KnownRelease
    ) -> None:
        """Bring, place and load one release, and write into `release` what came of it."""
        try:
            self._place(servers, model, number, intent)
            self._serve(servers, model, number, intent)
        except Exception as error:
            self._failed(servers, model, number, known, release, error)
            return
        release.became_ready()
        _log.info("%s release %d is ready", model, number)

    def load_again(
        self, servers: Servers, model: str, number: int, intent: Intent, known: KnownModel, release: KnownRelease
    ) -> None:
        """Load a release whose process has died or hangs, as it was placed: nothing is read and checked once more.

        Triton can load it while it still waits for requests that the dead process never ends.
        """
        try:
            for name in reversed(placed_folders(self.models, model, number)):
                servers.triton.unload(name)
                end_model_processes(self.models / name)
            if intent.ranks or not placed_models(self.models, model, number):
                self._place(servers, model, number, intent)
            self._serve(servers, model, number, intent)
        except Exception as error:
            self._failed(servers, model, number, known, release, error)
            release.how, release.stuck = "again", release.stuck + 1
            return
        release.became_ready()
        _log.info("%s release %d is ready again", model, number)

    def confirm(
        self, servers: Servers, model: str, number: int, intent: Intent, known: KnownModel, release: KnownRelease
    ) -> None:
        """Ask a release that an earlier agent has loaded; load it again if it does not answer."""
        try:
            _ask(servers, model, number, intent)
        except Exception:
            _log.exception("%s release %d does not answer", model, number)
            self.load_again(servers, model, number, intent, known, release)
            return
        release.became_ready(loaded=False)
        try:
            self.copies.note(intent)
        except (EnginehouseError, OSError):
            _log.info("%s release %d: what its copies must be is not known", model, number)

    def _place(self, servers: Servers, model: str, number: int, intent: Intent) -> None:
        repository, engine = self.copies.bring(intent)
        group = servers.groups.of(model, number, intent.ranks) if intent.ranks else None
        place_release(
            repository,
            engine,
            self.models,
            model,
            number,
            grpc=servers.triton.grpc,
            server=None if group is None else group.server,
        )
        if group is not None:
            group.start()

    def _serve(self, servers: Servers, model: str, number: int, intent: Intent) -> None:
        with self._room:
            _load_models(servers, placed_models(self.models, model, number))
            pauses = list(_FIRST_ASKED_AGAIN_SECONDS if intent.ranks else ())
            while True:
                try:
                    _ask(servers, model, number, intent)
                    return
                except TritonError:
                    if not pauses:
                        raise
                time.sleep(pauses.pop(0))

    def _failed(
        self, servers: Servers, model: str, number: int, known: KnownModel, release: KnownRelease, error: Exception
    ) -> None:
        _log.error("%s release %d could not be loaded", model, number, exc_info=error)
        release.cut_off = not servers.triton.within(_PUBLISH_SECONDS).live()
        text, hint = " ".join(str(error).split()), error.hint if isinstance(error, EnginehouseError) else ""
        # A public release is always tried again: nothing else can answer for it.
        public = known.wanted.public == number
        passing = _passes(error) or (public and _is_of_the_disk(error))
        if passing:
            release.error, release.retry_at = text, time.monotonic() + self.retry_seconds
        else:
            release.again(text)
            release.retry_at = time.monotonic() + max(self.retry_seconds, release.pause) if public else None
        release.hint, release.state = hint, "loading" if passing and not public else "failed"

    def unload(self, servers: Servers, model: str, number: int, release: KnownRelease) -> None:
        """Unload one release, wait until its requests have ended, and remove its folders."""
        names = placed_folders(self.models, model, number)
        engines = [name for name in release_names(model, number, ENGINES).values() if name in names]
        callers = [name for name in reversed(names) if name not in engines]
        deadline = time.monotonic() + _UNLOAD_SECONDS
        try:
            # Who calls an engine tells it to stop where nobody wants the answer any more, and Triton passes that on to
            # no model that is being unloaded.
            for part in (callers, engines):
                for name in part:
                    servers.triton.unload(name)
                while any(
                    entry.name in part and entry.state in ("UNLOADING", "READY") for entry in servers.triton.index()
                ):
                    if time.monotonic() > deadline:
                        servers.groups.end(model, number)  # its callers wait for an engine that answers no more
                        for name in names:
                            end_model_processes(self.models / name)
                        raise TritonError("Triton does not unload the release", code="triton-unload")
                    time.sleep(_POLL_SECONDS)
            servers.groups.end(model, number)
            withdraw_release(self.models, model, number)
        except Exception as error:
            release.error, release.retry_at = str(error), time.monotonic() + self.retry_seconds
            _log.exception("%s release %d could not be unloaded", model, number)
            return
        _log.info("%s release %d is unloaded", model, number)

    def publish(self, servers: Servers, model: str, number: int, known: KnownModel) -> None:
        """Point the public name at a release that is ready, and after it the aliases, which come and go with it."""
        aliases, asked = known.aliases_of(number), time.monotonic()
        try:
            write_public(self.models, model, number)
            servers.triton.load(model, _PUBLISH_SECONDS)
            for alias in aliases:
                write_public(self.models, model, number, alias)
                servers.triton.load(alias, _PUBLISH_SECONDS)
            for alias in {*known.aliases} - {*aliases}:
                self.take_away(servers, alias)
        except Exception as error:
            known.error, known.retry_at = str(error), time.monotonic() + self.retry_seconds
            _log.exception("%s cannot answer with release %d", model, number)
            return
        known.aliases, known.public, known.error = aliases, number, ""
        names, moved_ms = " and ".join((model, *aliases)), (time.monotonic() - asked) * 1000
        _log.info("%s answers with release %d; the move took %.0f ms", names, number, moved_ms)

    def withdraw(self, servers: Servers, model: str, known: KnownModel) -> None:
        """Take the public name away, and its aliases."""
        try:
            for name in (*known.aliases, model):
                self.take_away(servers, name)
        except Exception as error:
            known.error, known.retry_at = str(error), time.monotonic() + self.retry_seconds
            _log.exception("the public name %s could not be taken away", model)
            return
        known.public, known.aliases = None, ()
        _log.info("%s answers nobody", model)

    def take_away(self, servers: Servers, name: str) -> None:
        """Let a public name or an alias answer nobody. Raises TritonError and OSError."""
        servers.triton.unload(name)
        remove_tree(self.models / name)


def _passes(error: Exception) -> bool:
    return isinstance(error, EnginehouseError) and error.retryable


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the release itself is not to blame: a disk may be freed."""
    return isinstance(error, OSError) or (isinstance(error, EnginehouseError) and error.code == "disk-full")


def _ask(servers: Servers, model: str, number: int, intent: Intent) -> None:
    """One token of the release by its own name. Raises TritonError."""
    ask(servers.triton, release_names(model, number)[RELEASE], patience(intent), by_id=takes_ids(intent))


def _load_models(servers: Servers, names: Sequence[str]) -> None:
    """Load each in turn, until Triton reports all of them ready. Raises TritonError, with the cause if it is known."""
    start = servers.log.end()
    try:
        for name in names:
            servers.triton.load(name)
    except TritonError as error:
        if (known := known_load_failure(error.message, servers.log.since(start))) is None:
            raise
        raise known from error
    if silent := [name for name in names if not servers.triton.ready(name)]:
        raise TritonError(
            f"loaded, but not ready: {', '.join(silent)}",
            hint=f"see {servers.log.path}",
            code="triton-not-ready",
            retryable=True,
        )
