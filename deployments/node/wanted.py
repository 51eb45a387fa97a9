"""What the store wants of a node, read in a thread of its own, and kept on the node's disk.

The loop asks for the last known state and never waits for the store. With the store away, a node that starts goes by
the file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field

from infra.errors import EnginehouseError
from infra.files import replace_file
from tasks.store.names import collision
from tasks.store.record import Record
from tasks.targets.current import Current
from tasks.targets.release import Intent
from tasks.targets.target import Target

_POLL_SECONDS = 0.2
_POLL_SHARE = 0.1
"""Listings take at most this share of the time: a target of thousands of records is asked less often."""
_LONGEST_POLL_SECONDS = 1.0
_RETRY_SECONDS = 5.0
"""How long the store, or a record that could not be read, is left alone."""
_SILENT_SECONDS = 5.0
"""A store that has not answered for so long is reported; one that hangs raises nothing for minutes."""

_log = logging.getLogger("enginehouse.node")


class WantedModel(Record):
    """The wanted state of one model, and what its releases are."""

    current: Current
    etag: str
    """Of the record that `current` was read from."""
    intents: dict[int, Intent] = Field(default_factory=dict[int, Intent])
    """Those of the releases that the node holds or is to hold, as far as they could be read."""


class _Kept(Record):
    """The file: `node/wanted.json`."""

    target: str
    public_key: str = ""
    """The keys that the intents were checked with."""
    models: dict[str, WantedModel]


@dataclass(frozen=True)
class Unread:
    """Why a release's intent could not be read, or is not trusted."""

    error: str
    hint: str = ""


@dataclass(frozen=True)
class Reading:
    """The last known state. `fresh` once the store has answered; what the file says may be older."""

    models: Mapping[str, WantedModel] = field(default_factory=dict[str, WantedModel])
    errors: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of each model whose record could not be read. What was known of it before stays."""
    unread: Mapping[tuple[str, int], Unread] = field(default_factory=dict[tuple[str, int], Unread])
    error: str = ""
    """What is wrong with the store, or with the file."""
    fresh: bool = False

    @property
    def is_known(self) -> bool:
        """Whether anything says what is wanted."""
        return self.fresh or bool(self.models)


class Wanted:
    """Reads the wanted state of `target` until it is stopped, and keeps it in `file`.

    With `public_key`, a file or several, only intents count that were signed with the pair of one.
    """

    def __init__(self, target: Target, file: Path, public_key: str = "") -> None:
        self._target = replace(target, bucket=target.bucket.impatient(_SILENT_SECONDS))
        self._file = file
        self._public_key = public_key
        self._known = Reading()
        self._kept = b""
        self._held: frozenset[tuple[str, int]] = frozenset()
        self._retry_at: dict[str, float] = {}
        self._asked: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wanted", daemon=True)

    def start(self) -> None:
        """Take up what the file says, and begin to read."""
        try:
            self._kept = self._file.read_bytes()
            kept = _Kept.model_validate_json(self._kept)
            if (kept.target, kept.public_key) == (self._target.name, self._public_key):
                self._known = Reading(kept.models)
        except FileNotFoundError:
            pass
        except Exception as error:  # the store has it all
            _log.warning("%s cannot be read: %s", self._file, error)
        self._thread.start()

    def stop(self) -> None:
        """End reading. A request that hangs is not waited for."""
        self._stop.set()

    def hold(self, releases: frozenset[tuple[str, int]]) -> None:
        """Keep the intents of these releases too, wanted or not."""
        self._held = releases

    @property
    def reading(self) -> Reading:
        asked = self._asked
        if asked is not None and time.monotonic() - asked > _SILENT_SECONDS:
            return replace(self._known, error="the store does not answer [store-unavailable]")
        return self._known

    def _run(self) -> None:
        while not self._stop.is_set():
            began = self._asked = time.monotonic()
            try:
                self._known = self._read(self._known)
                taken = time.monotonic() - began
                pause = min(max(_POLL_SECONDS, taken / _POLL_SHARE - taken), _LONGEST_POLL_SECONDS)
            except Exception as error:
                if not isinstance(error, EnginehouseError):
                    _log.exception("the wanted state could not be read")
                self._known, pause = replace(self._known, error=str(error)), 1.0
            self._asked = None
            self._stop.wait(pause)

    def _read(self, known: Reading) -> Reading:
        """Read what changed: one listing, and the records of models with another ETag."""
        models, unread = dict(known.models), dict(known.unread)
        listed = self._target.wanted()
        errors = {name: error for name, error in known.errors.items() if name in listed}
        if not known.fresh:
            # Models that were taken off the target while this node was away; later, a record that is lost takes no
            # model from its clients.
            models = {name: model for name, model in models.items() if name in listed}
        for name, etag in listed.items():
            if problem := collision(name):
                errors[name] = problem  # an earlier version let a model have this name
                models.pop(name, None)
                continue
            if self._is_read(models.get(name), etag):
                errors.pop(name, None)
                continue
            if time.monotonic() < self._retry_at.get(name, 0.0):
                continue
            try:
                models[name] = self._read_model(name, models.get(name), unread)
                errors.pop(name, None)
                incomplete = any(model == name for model, _ in unread)
            except Exception as error:
                errors[name], incomplete = f"its current.json cannot be read: {_line(error)}", True
            if incomplete:
                self._retry_at[name] = time.monotonic() + _RETRY_SECONDS
            self._asked = time.monotonic()
        for name in models.keys() - listed.keys():
            errors[name] = "its current.json is gone from the store; what it last asked for is served on"
        return Reading(models, errors, unread, error=self._keep(models), fresh=True)

    def _is_read(self, model: WantedModel | None, etag: str) -> bool:
        return model is not None and model.etag == etag and model.intents.keys() >= _numbers(model.current)

    def _read_model(self, name: str, before: WantedModel | None, unread: dict[tuple[str, int], Unread]) -> WantedModel:
        current, etag = self._target.current(name)
        known = {} if before is None else before.intents
        wanted = _numbers(current)
        held = {number for model, number in self._held if model == name}
        intents = {number: intent for number, intent in known.items() if number in wanted | held}
        for number in wanted - intents.keys():
            try:
                intents[number] = self._target.trusted_intent(name, number, self._public_key)
                unread.pop((name, number), None)
            except Exception as error:
                hint = error.hint if isinstance(error, EnginehouseError) else ""
                unread[name, number] = Unread(f"its intent.json cannot be read: {_line(error)}", hint)
        for number in [number for model, number in unread if model == name and number not in wanted]:
            del unread[name, number]
        return WantedModel(current=current, etag=etag or "", intents=intents)

    def _keep(self, models: Mapping[str, WantedModel]) -> str:
        """Write the file if it changed; returns what is wrong with it."""
        kept = _Kept(target=self._target.name, public_key=self._public_key, models=dict(models))
        body = kept.model_dump_json().encode()
        if body == self._kept:
            return ""
        try:
            replace_file(self._file, body)
        except OSError as error:
            return f"{self._file.name} cannot be written: {error}"
        self._kept = body
        return ""


def _numbers(current: Current) -> set[int]:
    wanted = (current.public, current.previous, *current.candidates)
    return {number for number in wanted if number is not None}


def _line(error: Exception) -> str:
    """An error in one line. Validation errors of pydantic have several, and one repeats the input."""
    text = " ".join(str(error).split())
    return text if isinstance(error, EnginehouseError) else text[:300]
