"""Bringing one release into Triton, and taking it out again. Each call takes seconds to minutes, in its own thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.node.engine_groups import EngineGroups
from deployments.node.known import KnownModel, KnownRelease
from infra.errors import EnginehouseError, TritonError
from infra.triton.client import TritonClient
from infra.triton.log import Log
from tasks.store.artifact import recorded
from tasks.store.artifact_store import ArtifactStore
from tasks.store.verify import bring
from tasks.targets.target import Target
from tasks.triton.placement import place_release, placed_models, withdraw_release
from tasks.trtllm.backend.load_failures import known_load_failure

_UNLOAD_SECONDS = 600.0
"""How long running requests may keep a release; Triton can also lose one for good."""
_POLL_SECONDS = 0.2

_log = logging.getLogger("enginehouse.node")


@dataclass(frozen=True)
class Servers:
    """The Triton that runs now, its log, and the servers of engines beside it. A loader may outlive them."""

    triton: TritonClient
    log: Log
    groups: EngineGroups


@dataclass(frozen=True)
class Loading:
    """How a node loads its releases. `copies` holds the artifacts on its disk, `models` is Triton's repository.

    With `public_key`, a file or several, nothing is placed that was not signed with the pair of one.
    """

    target: Target
    store: ArtifactStore
    copies: Path
    models: Path
    public_key: str
    retry_seconds: float

    def load(self, servers: Servers, model: str, number: int, known: KnownModel, release: KnownRelease) -> None:
        """Bring, place and load one release, and write into `release` what came of it."""
        try:
            intent = self.target.trusted_intent(model, number, self.public_key)
            repository, engine = self._bring(intent.repository)
            group = servers.groups.of(model, number, intent.ranks) if intent.ranks else None
            place_release(repository, engine, self.models, model, number, None if group is None else group.server)
            if group is not None:
                group.start()
            _load_models(servers, placed_models(self.models, model, number))
        except Exception as error:
            retryable = isinstance(error, EnginehouseError) and error.retryable
            # A public release is always tried again: nothing else can answer for it.
            public = known.wanted.public == number
            if retryable or public:
                release.retry_at = time.monotonic() + self.retry_seconds
            release.error, release.state = str(error), "loading" if retryable and not public else "failed"
            release.hint = error.hint if isinstance(error, EnginehouseError) else ""
            _log.exception("%s release %d could not be loaded", model, number)
            return
        release.error, release.hint, release.starts = "", "", release.starts + 1
        release.state = "ready"
        _log.info("%s release %d is ready", model, number)

    def unload(self, servers: Servers, model: str, number: int, release: KnownRelease) -> None:
        """Unload one release, wait until its requests have ended, and remove its folders."""
        names = placed_models(self.models, model, number)
        try:
            for name in reversed(names):
                servers.triton.unload(name)
            deadline = time.monotonic() + _UNLOAD_SECONDS
            while any(
                entry.name in names and entry.state in ("UNLOADING", "READY") for entry in servers.triton.index()
            ):
                if time.monotonic() > deadline:
                    servers.groups.end(model, number)  # its callers wait for an engine that answers no more
                    raise TritonError("Triton does not unload the release", code="triton-unload")
                time.sleep(_POLL_SECONDS)
            servers.groups.end(model, number)
            withdraw_release(self.models, model, number)
        except (EnginehouseError, OSError) as error:
            release.error, release.retry_at = str(error), time.monotonic() + self.retry_seconds
            _log.exception("%s release %d could not be unloaded", model, number)
            return
        _log.info("%s release %d is unloaded", model, number)

    def _bring(self, reference: str) -> tuple[Path, Path]:
        """The repository and its engine on this node's disk, every byte checked."""
        repository, folder = bring(self.store, recorded(reference), self.copies, self.public_key)
        engine_ref = recorded(repository.manifest.inputs["engine"])
        _, engine = bring(self.store, engine_ref, self.copies, self.public_key)
        return folder, engine


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
