"""Whether an S3 server honours conditional writes, found out by trying before anything rests on them.

Some servers accept `If-None-Match` or `If-Match` and then write whether the condition holds or not. Two writers would
both get the answer that they were first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from infra.errors import PreconditionFailed, StoreError
from infra.s3.bucket import Bucket

_KEY = "conditional-writes"
"""One small object, which stays in the store: of two processes that try at once, neither deletes it for the other."""

_NO_ETAG = "0" * 32


@cache
def require_conditional_writes(bucket: Bucket) -> None:
    """Raise StoreError, code `store-unconditional`, if the server ignores a condition. Three requests, once a process.

    With `Bucket.one_writer` this machine compares, not the server, and the same check passes.
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
            f"the S3 server of bucket '{bucket.name}' ignores {' and '.join(ignored)}: two writers would both get the "
            "answer that they were first",
            hint="use a server that honours conditional writes (AWS, MinIO, Ceph and SeaweedFS do, each from some "
            "version on); if only this machine ever writes to the store, set ENGINEHOUSE_STORE_ONE_WRITER to a file "
            "that its processes lock",
            code="store-unconditional",
        )


def _honoured(write: Callable[[], str]) -> bool:
    """Whether the server refuses a write whose condition does not hold."""
    try:
        write()
    except PreconditionFailed:
        return True
    except StoreError as error:
        if error.code != "store-unsupported":
            raise
    return False
