"""How fast the store takes and gives bytes: one small object there and back."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator

from deployments.doctor.check import Check, Finding, fine, not_made, notice
from deployments.doctor.store import bucket_of
from infra.errors import StoreError
from infra.s3.bucket import Bucket
from infra.settings import Settings

_BYTES = 4 << 20
_SLOW_BYTES_PER_S = 20e6
"""16 GB, the weights of a model of eight billion parameters, then take more than 13 minutes."""
_EXAMPLE_BYTES = 16e9


def _look(settings: Settings) -> Iterator[Finding]:
    yield speed(bucket_of(settings), _SLOW_BYTES_PER_S)


def speed(bucket: Bucket, slow: float) -> Finding:
    """Write, read and delete one object of 4 MiB. `slow` in bytes per second."""
    key, body = f"doctor/{uuid.uuid4().hex}", os.urandom(_BYTES)
    try:
        up = _timed(lambda: bucket.put(key, body))
        try:
            down = _timed(lambda: bucket.get(key))
        finally:
            bucket.delete(key)
    except StoreError as error:
        if error.code != "store-denied":
            raise
        return not_made("these credentials may write only what their role needs, and not doctor/: no speed was taken")
    minutes = _EXAMPLE_BYTES / min(up, down) / 60
    what = f"{up / 1e6:.0f} MB/s up, {down / 1e6:.0f} MB/s down in one stream: 16 GB take {minutes:.0f} min"
    if min(up, down) < slow:
        return notice("store-slow", what, "enginehouse doctor store-speed, on a machine near the store, to compare")
    return fine(what)


def _timed(transfer: Callable[[], object]) -> float:
    began = time.monotonic()
    transfer()
    return _BYTES / max(time.monotonic() - began, 1e-6)


CHECK = Check("store-speed", "the speed of the store, with one object of 4 MiB", _look, within_s=45, needs="store")
