"""Conditional writes of both kinds, on which every promise of the store rests."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, notice
from deployments.doctor.store import bucket_of
from infra.s3.conditional_writes import require_conditional_writes
from infra.settings import Settings


def _look(settings: Settings) -> Iterator[Finding]:
    bucket = bucket_of(settings)
    require_conditional_writes(bucket)
    if bucket.one_writer:
        yield notice(
            "store-one-writer",
            f"this machine compares in place of the server, under the lock {bucket.one_writer}: no other may write",
            "unset ENGINEHOUSE_STORE_ONE_WRITER, once the server honours conditional writes",
        )
    else:
        yield fine("If-None-Match and If-Match: kept where they hold, refused where they do not")


CHECK = Check(
    "store-conditions",
    "conditional writes: If-None-Match and If-Match, true and false",
    _look,
    within_s=45,
    needs="store",
)
