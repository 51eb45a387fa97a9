"""The store: whether this machine may list it and read it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, wrong
from infra.errors import StoreUnavailable
from infra.s3.bucket import Bucket
from infra.settings import Settings

PATIENCE_S = 3.0
"""A request that waits longer is tried again, four times in all: an end comes within the bound of each check."""


def bucket_of(settings: Settings) -> Bucket:
    """Raises SettingsError if no store is set."""
    return Bucket.at(settings.store).impatient(PATIENCE_S)


def _look(settings: Settings) -> Iterator[Finding]:
    bucket = bucket_of(settings)
    where = bucket.endpoint or "AWS"
    began = time.monotonic()
    try:
        for prefix in ("artifacts/", "targets/"):
            first = next(iter(bucket.list(prefix)), None)
            if first is not None:
                bucket.beginning(first.key, 1)
    except StoreUnavailable as error:
        mend = f"enginehouse up, or AWS_ENDPOINT_URL_S3 is wrong; curl -sSI {where} says more"
        yield wrong(error.code, f"no store answers at {where}: {error.message}", mend)
        return
    took = time.monotonic() - began
    yield fine(f"{settings.store} at {where} can be listed and read ({took * 1000:.0f} ms)")


CHECK = Check("store", "the bucket: its address, and the right to list and to read it", _look, within_s=45)
