"""How an S3 server wants the ETag of `If-Match`: in quotes, as HTTP says, or bare. It is found out by trying.

Ceph 16, and DigitalOcean's Spaces, compare the bare ETag of the object with the header as it came, so they refuse the
quoted one although the object has it. Other servers refuse any `If-Match` of a write. Sources: ceph/ceph#63348,
slatedb/slatedb#1818, versity/versitygw#1710.
"""

from __future__ import annotations

import random
import time
from functools import cache
from typing import TYPE_CHECKING

from infra.errors import PreconditionFailed, StoreError
from infra.s3.named_errors import named_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TRIED_KEY = "conditional-writes"
"""One small object, which stays in the store: of two processes that try at once, neither deletes it for the other."""
TRIED_BODY = b"1"
"""The same from every process, so that a write of another one leaves the ETag as it is."""
NO_ETAG = "0" * 32

_TRIES = 4
"""A server may refuse a condition that holds while another request writes the key (409). It does so no more than a few
times."""
_LONGEST_PAUSE_SECONDS = 0.1


@cache
def wants_bare_etags(client: S3Client, bucket: str, prefix: str) -> bool:
    """Whether the server takes a true `If-Match` only without its quotes. A few requests, once a process.

    Credentials that may not write the object that is tried get False. Raises StoreError, code `store-unconditional`, if
    the server refuses a condition that holds in either form.
    """
    try:
        if _takes(client, bucket, prefix + TRIED_KEY, '"{}"'):
            return False
        if _takes(client, bucket, prefix + TRIED_KEY, "{}") and not _writes(
            client, bucket, prefix + TRIED_KEY, NO_ETAG
        ):
            return True
    except StoreError as error:
        if error.code != "store-denied":
            raise
        return False
    raise StoreError(
        f"the S3 server of bucket '{bucket}' refuses to write with `If-Match`, although the object has the ETag: "
        "nothing that several writers change can be written",
        hint="use a later version of the server or another one; if only this machine ever writes to the store, set "
        "ENGINEHOUSE_STORE_ONE_WRITER to a file that its processes lock",
        code="store-unconditional",
    )


def _takes(client: S3Client, bucket: str, key: str, form: str) -> bool:
    """Whether the server writes an object whose ETag, in this form, is the one that it just answered."""
    for number in range(_TRIES):
        if number:
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))
        with named_errors(key):
            etag = client.put_object(Bucket=bucket, Key=key, Body=TRIED_BODY)["ETag"].strip('"')
        if _writes(client, bucket, key, form.format(etag)):
            return True
    return False


def _writes(client: S3Client, bucket: str, key: str, condition: str) -> bool:
    try:
        with named_errors(key):
            client.put_object(Bucket=bucket, Key=key, Body=TRIED_BODY, IfMatch=condition)
    except PreconditionFailed:
        return False
    return True
