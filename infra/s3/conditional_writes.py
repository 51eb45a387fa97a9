"""Whether an S3 server honours conditional writes: found out by trying, before anything rests on it.

Some servers take `If-None-Match` or `If-Match` and write all the same, without a word. Two writers would then both be
told that they were first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from infra.errors import PreconditionFailed, StoreError
from infra.s3.bucket import Bucket

_KEY = "conditional-writes"
"""One small object, left in the store: of two who look at the same time, neither takes it away from the other."""

_NO_ETAG = "0" * 32


@cache
def require_conditional_writes(bucket: Bucket) -> None:
    """Raise StoreError, code `store-unconditional`, where the server ignores a condition. Once a process, 3 requests.

    Where one writer was promised (`Bucket.one_writer`) this machine looks itself, and so does this.
    """
    bucket.put(_KEY, b"1")
    ignored = [
        header
        for header, write in (
            ("If-None-Match", lambda: bucket.create(_KEY, b"1")),
            ("If-Match", lambda: bucket.replace(_KEY, b"1", _NO_ETAG)),
        )
        if not _honoured(write)
    ]
    if ignored:
        raise StoreError(
            f"the S3 server of bucket '{bucket.name}' ignores {' and '.join(ignored)}: of two writers each would be "
            "told that it was first",
            hint="use a server that honours conditional writes (AWS, MinIO, Ceph and SeaweedFS do, each from some "
            "version on); where this machine alone ever writes to the store, set ENGINEHOUSE_STORE_ONE_WRITER to a "
            "file that its processes lock",
            code="store-unconditional",
        )


def _honoured(write: Callable[[], str]) -> bool:
    """Whether a write whose condition does not hold is refused for that."""
    try:
        write()
    except PreconditionFailed:
        return True
    except StoreError as error:
        if error.code != "store-unsupported":
            raise
    return False
