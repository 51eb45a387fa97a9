"""Whether an S3 server honours conditional writes, found out by trying before anything rests on them.

Some servers accept `If-None-Match` or `If-Match` and then write whether the condition holds or not: two writers would
both get the answer that they were first. Others refuse a condition that holds: nobody could ever write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from infra.errors import PreconditionFailed, StoreError
from infra.s3.bucket import Bucket
from infra.s3.if_match import NO_ETAG, TRIED_BODY, TRIED_KEY, wants_bare_etags


@cache
def require_conditional_writes(bucket: Bucket) -> None:
    """Raise StoreError, code `store-unconditional`, if the server ignores a condition, or refuses one that holds.

    A few requests, once a process. With `Bucket.one_writer` this machine compares, not the server, and the same check
    passes.
    """
    ignored = [
        header
        for header, honoured in (
            ("If-None-Match", _honours_creation(bucket)),
            ("If-Match", _refuses(lambda: bucket.replace(TRIED_KEY, TRIED_BODY, NO_ETAG))),
        )
        if not honoured
    ]
    if ignored:
        raise _unconditional(
            f"the S3 server of bucket '{bucket.name}' ignores {' and '.join(ignored)}: two writers would both get the "
            "answer that they were first"
        )
    if not bucket.one_writer:
        wants_bare_etags(bucket.client, bucket.name, bucket.prefix)


def _honours_creation(bucket: Bucket) -> bool:
    """Try an `If-None-Match` that does not hold, and first, where the store is new, one that holds."""
    create = partial(bucket.create, TRIED_KEY, TRIED_BODY)
    if not _refuses(create):
        return _refuses(create)
    try:
        exists = bucket.get(TRIED_KEY) is not None
    except StoreError as error:
        if error.code != "store-denied":  # a role may be allowed to write the object alone
            raise
        return True
    if not exists:
        raise _unconditional(
            f"the S3 server of bucket '{bucket.name}' refuses If-None-Match for a key that has no object: nothing "
            "could ever be created"
        )
    return True


def _unconditional(what: str) -> StoreError:
    return StoreError(
        what,
        hint="use a server that honours conditional writes (AWS, MinIO, Ceph and SeaweedFS do, each from some "
        "version on); if only this machine ever writes to the store, set ENGINEHOUSE_STORE_ONE_WRITER to a file "
        "that its processes lock",
        code="store-unconditional",
    )


def _refuses(write: Callable[[], str]) -> bool:
    """Whether the server refuses the write for its condition. One that does not know conditions does not."""
    try:
        write()
    except PreconditionFailed:
        return True
    except StoreError as error:
        if error.code != "store-unsupported":
            raise
    return False
