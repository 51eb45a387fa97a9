"""This machine's clock against the store's: S3 refuses what was signed 15 minutes too early or too late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from deployments.doctor.check import Check, Finding, fine, wrong
from deployments.doctor.store import bucket_of
from infra.s3.bucket import Bucket
from infra.s3.named_errors import named_errors
from infra.settings import Settings

_MOST_S = 60.0
"""Far below S3's 15 minutes: a clock that runs away gets there, and tokens of others last for minutes too."""


def _now() -> datetime:
    return datetime.now(UTC)


def _look(settings: Settings) -> Iterator[Finding]:
    yield clock(bucket_of(settings), _now)


def clock(bucket: Bucket, now: Callable[[], datetime]) -> Finding:
    """Compare `now` with the `Date` of an answer, which has whole seconds."""
    before = now()
    with named_errors(""):
        answer = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=bucket.prefix, MaxKeys=1)
    theirs = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    skew_s = (before + (now() - before) / 2 - theirs).total_seconds()
    if abs(skew_s) <= _MOST_S:
        return fine(f"this machine's clock and the store's are {abs(skew_s):.0f} s apart")
    way = "ahead of" if skew_s > 0 else "behind"
    return wrong(
        "store-clock",
        f"this machine's clock is {abs(skew_s):.0f} s {way} the store's, which refuses requests from 900 s on",
        "timedatectl set-ntp true, on the machine whose clock is wrong",
    )


CHECK = Check("store-clock", "this machine's clock against the store's", _look, within_s=45, needs="store")
