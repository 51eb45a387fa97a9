"""Whether an S3 server honours conditional writes, found out by trying before anything rests on them.

Some servers accept `If-None-Match` or `If-Match` and then write whether the condition holds or not: two writers would
both get the answer that they were first. Others refuse a condition that holds: nobody could ever write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from infra.errors import PreconditionFailed, StoreError
from infra.s3.bucket import Bucket
from infra.s3.if_match import NO_ETAG, TRIED_BODY, TRIED_KEY, wants_bare_etags


@cache
def require_conditional_writes(bucket: Bucket) -> None:
    """Raise StoreError, code `store-unconditional`, if the server ignores a condition, or refuses one that holds.

    A few requests, once a process. With `Bucket.one_writer` this machine compares, not the server, and the same check
    passes.
    """
    _require_creation(bucket)
    bucket.put(TRIED_KEY, TRIED_BODY)
    ignored = [
        header
        for header, write in (
            ("If-None-Match", lambda: bucket.create(TRIED_KEY, TRIED_BODY)),
            ("If-Match", lambda: bucket.replace(TRIED_KEY, TRIED_BODY, NO_ETAG)),
        )
        if not _honoured(write)
    ]
    if ignored:
        raise _unconditional(
            f"the S3 server of bucket '{bucket.name}' ignores {' and '.join(ignored)}: two writers would both get the "
            "answer that they were first"
        )
    if not bucket.one_writer:
        wants_bare_etags(bucket.client, bucket.name, bucket.prefix)


def _require_creation(bucket: Bucket) -> None:
    """Try an `If-None-Match` that holds, where the store is new. Later the object is there, and the server refuses."""
    try:
        bucket.create(TRIED_KEY, TRIED_BODY)
    except PreconditionFailed:
        try:
            exists = bucket.get(TRIED_KEY) is not None
        except StoreError as error:
            if error.code != "store-denied":  # a role may be allowed to write the object alone
                raise
            return
        if not exists:
            raise _unconditional(
                f"the S3 server of bucket '{bucket.name}' refuses If-None-Match for a key that has no object: nothing "
                "could ever be created"
            ) from None
    except StoreError as error:
        if error.code != "store-unsupported":
            raise


def _unconditional(what: str) -> StoreError:
    return StoreError(
        what,
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
