"""Leases: who is making an artifact right now, and whether that process is still alive.

A lease only saves work. Safety never depends on it: manifests are created once, with `If-None-Match`. No two clocks are
compared: a lease has expired if its ETag did not change for as long as it lives, by the watcher's own monotonic clock.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from pydantic import JsonValue

from infra.errors import PreconditionFailed, StoreError, StoreUnavailable
from infra.s3.bucket import Bucket
from tasks.store.cell import attempts, contended
from tasks.store.record import require_known

_RENEWALS = 3
"""In the lifetime of a lease: it survives one that fails."""

LONGEST_WORK_SECONDS = 86400.0
"""No fetch, conversion, build or collection takes a day. A holder that renews its lease for longer hangs."""

_log = logging.getLogger("enginehouse.store")


def _key(identity: str) -> str:
    return f"leases/{identity}.json"


@contextmanager
def held(
    bucket: Bucket,
    identity: str,
    holder: str,
    seconds: float,
    *,
    wait_seconds: float = LONGEST_WORK_SECONDS,
    waiting: Callable[[str], None] = lambda holder: None,
) -> Generator[None]:
    """Hold the lease of `identity` while the block runs, renewing it three times within `seconds`.

    Waits while another holder is alive, for `wait_seconds` at most; `waiting` is told once who that is. Losing the
    lease while the block runs, by a pause longer than `seconds`, is no error: the manifest decides whose work counts.
    Raises StoreError if the store cannot be reached at the start, and with the code `lease-held` after the wait.
    """
    # Two tries for each renewal: one connection may hang where the next gets through.
    bucket = bucket.impatient(seconds / _RENEWALS / 2)
    watch = Watch(bucket, identity, seconds)
    until, told = time.monotonic() + wait_seconds, False
    while (hold := _try_acquire(bucket, identity, holder, watch)) is None:
        if not told and (other := watch.holder()) is not None:
            waiting(other)
            told = True
        if time.monotonic() > until:
            raise _still_held(identity, watch.holder(), wait_seconds)
        time.sleep(min(1.0, seconds / 10))
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(hold, holder, stop), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        # If the store cannot be reached, the lease expires by itself: do not wait for longer than that.
        renewer.join(seconds)


def _still_held(identity: str, holder: str | None, waited: float) -> StoreError:
    return StoreError(
        f"'{holder or 'another run'}' has been at work on {identity[:12]} for {_as_said(waited)}, and still is",
        hint="look whether that run hangs, and end it; its lease then expires by itself",
        code="lease-held",
    )


def _as_said(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"


def discard(bucket: Bucket, identity: str, etag: str, holder: str, seconds: float) -> bool:
    """Delete a lease that nobody has taken since it had `etag`; returns False if somebody has. Raises StoreError.

    Not every S3 server has conditional deletes. So the lease is first taken for `seconds`, by a conditional write:
    meanwhile nobody else takes it, and whoever waits for it creates another one once it is deleted.
    """
    began = time.monotonic()
    if not _Hold(bucket, identity, seconds, etag).write(holder) or time.monotonic() - began >= seconds:
        return False
    bucket.delete(_key(identity))
    return True


@dataclass
class _Hold:
    """One holder's writes of one lease. Each carries the holder's token, which tells a write whose answer was lost."""

    bucket: Bucket
    identity: str
    seconds: float
    etag: str | None
    """Of the object that the next write replaces; None if there is none."""
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _count: int = 0

    def write(self, holder: str | None) -> bool:
        """Write `holder` (None: released) into the lease; returns False if another holder has it. Raises StoreError."""
        self._count += 1
        # Another nonce each time, so that every renewal changes the ETag.
        nonce = f"{self._token}-{self._count}"
        body = json.dumps({"schema": 1, "holder": holder, "nonce": nonce, "seconds": self.seconds}).encode()
        # No Cell: a holder that lost the race against another one must stop. It writes again only if it lost against an
        # earlier write of its own, whose answer did not arrive.
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
    return hold if hold.write(holder) else None  # None: another process was quicker


def _renew(hold: _Hold, holder: str, stop: threading.Event) -> None:
    while not stop.wait(hold.seconds / _RENEWALS):
        try:
            if not hold.write(holder):
                return  # another holder took over
        except Exception as error:  # whatever it was (credentials that could not be renewed): the next may succeed
            _log.warning("the lease of %s was not renewed: %s", hold.identity[:12], error)
    try:
        # Released by one more conditional write, because not every S3 server has conditional deletes.
        hold.write(None)
    except Exception as error:
        _log.warning("the lease of %s was not released, and will expire: %s", hold.identity[:12], error)


def _document(body: bytes) -> dict[str, JsonValue]:
    """A lease as JSON; empty if it cannot be read. Such a lease counts as held until it expires."""
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, JsonValue]", document) if isinstance(document, dict) else {}


def holder_of(body: bytes) -> str | None:
    """Who holds the lease; None if it was released. Raises FormatNewer."""
    document = _document(body)
    schema = document.get("schema", 1)
    require_known(schema if isinstance(schema, int) else 1, 1, "lease")
    holder = document.get("holder", "")
    return None if holder is None else str(holder)


@dataclass
class Watch:
    """Watches one lease: keeps the last ETag, and since when it has seen it, on its own clock.

    `seconds` is the lifetime of a lease that does not name one.
    """

    bucket: Bucket
    identity: str
    seconds: float
    etag: str | None = None
    _since: float = field(default_factory=time.monotonic)

    def holder(self) -> str | None:
        """Who holds the lease and may be alive; None if it is free, released or expired. Raises StoreError."""
        asked = time.monotonic()  # before the request: a slow answer must not let the lease expire
        try:
            record = self.bucket.get(_key(self.identity))
        except StoreUnavailable:
            self._since = time.monotonic()  # the holder could not renew it either
            raise
        if record is None:
            self.etag = None
            return None
        if record.etag != self.etag:
            self.etag, self._since = record.etag, time.monotonic()
        holder = holder_of(record.body)
        seconds = _document(record.body).get("seconds")
        lifetime = seconds if isinstance(seconds, int | float) else self.seconds
        return None if asked - self._since >= lifetime else holder
