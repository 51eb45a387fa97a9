"""API keys: who may ask which models, and how much. The file has their hashes, and is read again when it changes.

    keys:
      - name: search
        sha256: 9f86d081…            # of the whole key
        models: [llama3-8b-instruct] # all, if it is left out
        requests: 32                 # running at once
        tokens_per_minute: 600000

A key has 32 random bytes, so its plain sha256 cannot be guessed back.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from infra.errors import GatewayError, SettingsError

_LOOK_SECONDS = 1.0
_LONGEST_KEY = 512
_log = logging.getLogger("enginehouse.gateway")


class Key(BaseModel):
    """One key. `requests` at once and `tokens_per_minute` are 0 where they have no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    models: tuple[str, ...] = ()
    requests: Annotated[int, Field(ge=0)] = 0
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0

    def may_ask(self, model: str) -> bool:
        return not self.models or model in self.models


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Key, ...]


def new_key(name: str, models: tuple[str, ...] = (), requests: int = 0, tokens_per_minute: int = 0) -> tuple[str, Key]:
    """A fresh key and its entry. Raises SettingsError for a name that no key can have."""
    secret = f"eh-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    try:
        entry = Key(name=name, sha256=digest, models=models, requests=requests, tokens_per_minute=tokens_per_minute)
    except ValidationError as error:
        raise _refused(_mistakes("the entry", error)) from None
    return secret, entry


def entry_text(key: Key) -> str:
    """The entry as it is added to the file."""
    return yaml.safe_dump([key.model_dump(mode="json", exclude_defaults=True)], sort_keys=False)


class Keys:
    """The keys of a file, YAML or JSON. Without a `file` everybody may ask."""

    def __init__(self, file: Path | None) -> None:
        """Raises SettingsError, code `gateway-keys`, if the file cannot be read."""
        self._file = file
        self._stamp: tuple[int, ...] = ()
        self._looked = time.monotonic()
        self._keys: tuple[Key, ...] = ()
        if file is not None:
            self._stamp = _stamp(file)
            self._keys = _read(file)

    @property
    def required(self) -> bool:
        return self._file is not None

    def find(self, authorization: str | None) -> Key | None:
        """The key of an `Authorization: Bearer …`; None where none is required.

        Raises GatewayError, code `key-missing` or `key-unknown`.
        """
        if self._file is None:
            return None
        self._look(self._file)
        scheme, _, secret = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise GatewayError("a key is required", hint="send it as `Authorization: Bearer KEY`", code="key-missing")
        digest = hashlib.sha256(secret.strip()[:_LONGEST_KEY].encode(errors="replace")).hexdigest()
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(digest, key.sha256):
                found = key
        if found is None:
            raise GatewayError("this key is not known", code="key-unknown")
        return found

    def _look(self, file: Path) -> None:
        """Read the file again if it has changed. While it has mistakes, the keys of before stay."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            stamp = _stamp(file)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._keys = _read(file)
            _log.info("the keys were read again: %d", len(self._keys))
        except SettingsError as error:
            _log.error("the keys of before stay: %s", error)


def _stamp(file: Path) -> tuple[int, ...]:
    # A Secret's file is a link whose target Kubernetes replaces; `stat` follows it.
    try:
        status = file.stat()
    except OSError as error:
        raise _refused(f"cannot be read: {error}") from error
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(file: Path) -> tuple[Key, ...]:
    try:
        found = _File.model_validate(yaml.safe_load(file.read_bytes())).keys
    except ValidationError as error:
        raise _refused(_mistakes(str(file), error)) from None
    except (OSError, yaml.YAMLError) as error:
        raise _refused(f"{file} cannot be read: {error}") from error
    names = [key.name for key in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise _refused(f"{file} has the name {', '.join(sorted(twice))} twice")
    return found


def _refused(what: str) -> SettingsError:
    return SettingsError(
        f"the gateway's keys: {what}",
        hint="ENGINEHOUSE_GATEWAY_KEYS names the file; `enginehouse gateway-key NAME` prints an entry for it. A name "
        "has letters, digits, dots, underscores and dashes",
        code="gateway-keys",
    )


def _mistakes(what: str, error: ValidationError) -> str:
    """Without the values: somebody may have written a key where its hash belongs."""
    found = error.errors(include_url=False, include_input=False)
    return f"{what} has mistakes: " + "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)
