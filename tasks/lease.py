"""Leases: who is making an artifact right now, and whether they are still alive.

A lease only saves work; safety never depends on it (manifests are created once, with `If-None-Match`). A
watcher compares no clocks: a lease has expired when its ETag has not changed for one lease length of the
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

from infra.errors import PreconditionFailed, StoreError
from infra.s3 import Bucket
from tasks.record import require_known


def _key(identity: str) -> str:
    return f"leases/{identity}.json"


@contextmanager
def held(bucket: Bucket, identity: str, holder: str, seconds: float) -> Generator[None]:
    """Hold the lease of `identity` while the block runs, renewing it every third of `seconds`.

    Waits while somebody else holds it and is alive. Losing it while the block runs (a pause longer than the
    lease) is no error: the manifest decides whose work counts.
    """
    watch = Watch(bucket, identity, seconds)
    while (etag := _try_acquire(bucket, identity, holder, watch)) is None:
        time.sleep(min(1.0, seconds / 10))
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(bucket, identity, holder, seconds, etag, stop), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join()


def _body(holder: str) -> bytes:
    # The nonce gives every renewal an ETag of its own.
    return json.dumps({"schema": 1, "holder": holder, "nonce": uuid.uuid4().hex}).encode()


def _try_acquire(bucket: Bucket, identity: str, holder: str, watch: Watch) -> str | None:
    try:
        if watch.holder() is None:
            if watch.etag is None:
                return bucket.create(_key(identity), _body(holder))
            return bucket.replace(_key(identity), _body(holder), watch.etag)
    except PreconditionFailed:
        pass  # another one was quicker; look again
    return None


def _renew(bucket: Bucket, identity: str, holder: str, seconds: float, etag: str, stop: threading.Event) -> None:
    while not stop.wait(seconds / 3):
        try:
            etag = bucket.replace(_key(identity), _body(holder), etag)
        except PreconditionFailed:
            return  # taken over
        except StoreError:
            continue  # the store is away; the next renewal may reach it
    try:
        # Released by a last conditional write, since S3 has no conditional delete everywhere.
        bucket.replace(_key(identity), json.dumps({"schema": 1, "holder": None}).encode(), etag)
    except StoreError:
        return  # it expires by itself


@dataclass
class Watch:
    """An onlooker of one lease: keeps the ETag last seen, and since when on its own clock."""

    bucket: Bucket
    identity: str
    seconds: float
    etag: str | None = None
    _since: float = field(default_factory=time.monotonic)

    def holder(self) -> str | None:
        """Who holds the lease and may be alive; None where it is free, released or expired."""
        record = self.bucket.get(_key(self.identity))
        if record is None:
            self.etag = None
            return None
        if record.etag != self.etag:
            self.etag, self._since = record.etag, time.monotonic()
        body = json.loads(record.body)
        require_known(body["schema"], 1, "lease")
        holder = body["holder"]
        if holder is None or time.monotonic() - self._since >= self.seconds:
            return None
        return str(holder)
