"""Leases: who is making an artifact right now, and whether they are still alive.

A lease only saves work; safety never depends on it (manifests are created once, with `If-None-Match`). A
watcher compares no clocks: a lease has expired when its ETag has not changed for as long as it says it lives, by the
watcher's own monotonic clock.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from infra.errors import PreconditionFailed, StoreError, StoreUnavailable
from infra.s3.bucket import Bucket
from tasks.store.cell import attempts, contended
from tasks.store.record import require_known


def _key(identity: str) -> str:
    return f"leases/{identity}.json"


@contextmanager
def held(bucket: Bucket, identity: str, holder: str, seconds: float) -> Generator[None]:
    """Hold the lease of `identity` while the block runs, renewing it every third of `seconds`.

    Waits while somebody else holds it and is alive. Losing it while the block runs (a pause longer than the
    lease) is no error: the manifest decides whose work counts.
    """
    # A renewal that hangs for longer than the lease would lose it, and another connection may get through.
    bucket = bucket.impatient(seconds / 6)
    watch = Watch(bucket, identity, seconds)
    while (hold := _try_acquire(bucket, identity, holder, watch)) is None:
        time.sleep(min(1.0, seconds / 10))
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(hold, holder, stop), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        # With a store that is away the lease expires by itself, and nobody has to wait for that here.
        renewer.join(seconds)


@dataclass
class _Hold:
    """One holder's writes of one lease. All have its token, so that one whose answer was lost is known for its own."""

    bucket: Bucket
    identity: str
    seconds: float
    etag: str | None
    """Of what the next write replaces; None where there is nothing yet."""
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _count: int = 0

    def write(self, holder: str | None) -> bool:
        """Whether the lease says `holder` now; False where it is somebody else's. Raises StoreError."""
        self._count += 1
        # Every renewal has an ETag of its own.
        nonce = f"{self._token}-{self._count}"
        body = json.dumps({"schema": 1, "holder": holder, "nonce": nonce, "seconds": self.seconds}).encode()
        # No Cell: a write that lost its race is not tried again, unless an earlier write of this very holder, whose
        # answer was lost, is what it lost against.
        for _ in attempts():
            try:
                self.etag = self.bucket.swap(_key(self.identity), body, self.etag)
                return True
            except PreconditionFailed:
                stored = self.bucket.get(_key(self.identity))
                found = "" if stored is None else str(_document(stored.body).get("nonce", ""))
                if stored is None or not found.startswith(self._token):
                    return False
                self.etag = stored.etag
                if found == nonce:
                    return True
        raise contended(_key(self.identity))


def _try_acquire(bucket: Bucket, identity: str, holder: str, watch: Watch) -> _Hold | None:
    if watch.holder() is not None:
        return None
    hold = _Hold(bucket, identity, watch.seconds, watch.etag)
    return hold if hold.write(holder) else None  # another one was quicker; look again


def _renew(hold: _Hold, holder: str, stop: threading.Event) -> None:
    while not stop.wait(hold.seconds / 3):
        try:
            if not hold.write(holder):
                return  # taken over
        except StoreError:
            continue  # the store is away; the next renewal may reach it
    try:
        # Released by a last conditional write, since S3 has no conditional delete everywhere.
        hold.write(None)
    except StoreError:
        return  # it expires by itself


def _document(body: bytes) -> dict[str, Any]:
    """A lease as JSON; empty where nobody can read it, and then it is somebody's until it expires."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def holder_of(body: bytes) -> str | None:
    """Who wrote the lease; None where it is released. Raises FormatNewer."""
    document = _document(body)
    require_known(document.get("schema", 1), 1, "lease")
    holder = document.get("holder", "")
    return None if holder is None else str(holder)


@dataclass
class Watch:
    """An onlooker of one lease: keeps the ETag last seen, and since when on its own clock.

    `seconds` is how long a lease lives that does not say so itself.
    """

    bucket: Bucket
    identity: str
    seconds: float
    etag: str | None = None
    _since: float = field(default_factory=time.monotonic)

    def holder(self) -> str | None:
        """Who holds the lease and may be alive; None where it is free, released or expired."""
        asked = time.monotonic()  # how long an answer takes says nothing of the holder
        try:
            record = self.bucket.get(_key(self.identity))
        except StoreUnavailable:
            self._since = time.monotonic()  # nor does a store that nobody reaches
            raise
        if record is None:
            self.etag = None
            return None
        if record.etag != self.etag:
            self.etag, self._since = record.etag, time.monotonic()
        holder = holder_of(record.body)
        told = _document(record.body).get("seconds")
        lives = told if isinstance(told, int | float) else self.seconds
        return None if asked - self._since >= lives else holder
