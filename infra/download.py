"""Download: files from the store side by side, each hashed while it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreError, StoreUnavailable
from infra.lanes import LANES, in_lanes
from infra.s3 import Bucket, named_errors

RANGE_BYTES = 8 << 20
_CHUNK_BYTES = 256 << 10
"""Small enough to be hashed and written while it is in the processor's cache: that halves the time of both."""
_TRIES = 6
_LONGEST_PAUSE_SECONDS = 8.0


@dataclass(frozen=True)
class Wanted:
    """A file to bring: from `key` to `path`. It must have `size` bytes, `sha256`, and still `etag` in the store."""

    key: str
    path: Path
    size: int
    sha256: str
    etag: str


def download_files(
    bucket: Bucket, files: Sequence[Wanted], progress: Callable[[int], None], *, range_bytes: int = RANGE_BYTES
) -> None:
    """Bring `files` to this disk, each checked against its sha256. Folders must be there, files must not.

    `progress` gets bytes, from any thread. Files come side by side, a file that outweighs the others in ranges; little
    of them is in memory at once. What breaks is asked for again from there on. Raises ArtifactDamaged where a file is
    not what was wanted, StoreError (`disk-full` where it is), and StoreUnavailable, which is retryable.
    """
    share = max(range_bytes, sum(file.size for file in files) // LANES)
    for file in files:
        if file.size > share:
            ranges = (
                partial(_range, bucket, file, first, min(first + range_bytes, file.size))
                for first in range(0, file.size, range_bytes)
            )
            with closing(in_lanes(ranges)) as chunks:
                _write(file, chunks, progress)
    rest = sorted((file for file in files if file.size <= share), key=lambda file: -file.size)
    with closing(in_lanes(partial(_whole, bucket, file, progress) for file in rest)) as written:
        for _ in written:
            pass


def _whole(bucket: Bucket, file: Wanted, progress: Callable[[int], None]) -> None:
    _write(file, _chunks(bucket, file, 0, file.size), progress)


def _range(bucket: Bucket, file: Wanted, first: int, end: int) -> bytes:
    return b"".join(_chunks(bucket, file, first, end))


def _write(file: Wanted, chunks: Iterable[bytes], progress: Callable[[int], None]) -> None:
    digest = hashlib.sha256()
    with _named_disk_errors(file), file.path.open("xb") as target:
        if file.size:  # a full disk is found before the transfer, not after most of it
            os.posix_fallocate(target.fileno(), 0, file.size)
        for chunk in chunks:
            digest.update(chunk)
            target.write(chunk)
            progress(len(chunk))
    if digest.hexdigest() != file.sha256:
        raise _damaged(file.key)


def _chunks(bucket: Bucket, file: Wanted, first: int, end: int) -> Iterator[bytes]:
    """The bytes of an object from `first` to `end`. The client retries what fails before an answer; this, what breaks
    in its midst.
    """
    failures = 0
    while first < end:
        try:
            with named_errors(file.key):
                body = bucket.client.get_object(
                    Bucket=bucket.name,
                    Key=bucket.prefix + file.key,
                    Range=f"bytes={first}-{end - 1}",
                    IfMatch=f'"{file.etag}"',
                )["Body"]
                while chunk := body.read(_CHUNK_BYTES):
                    first, failures = first + len(chunk), 0
                    yield chunk
        except PreconditionFailed as error:
            raise _damaged(file.key) from error
        except StoreUnavailable:
            failures += 1
            if failures == _TRIES:
                raise
            time.sleep(random.uniform(0, min(2.0**failures, _LONGEST_PAUSE_SECONDS)))
        else:
            if first < end:  # a server that sends less than it was asked for, and calls that whole
                raise _damaged(file.key)


def _damaged(key: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"'{key}' does not hold the bytes that its manifest names",
        hint="run the rebuild again: the artifact is then made anew",
    )


@contextmanager
def _named_disk_errors(file: Wanted) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StoreError(
            f"no room for '{file.path}': {file.size / 2**20:.0f} MiB are needed",
            hint=f"free space in {file.path.parent}",
            code="disk-full",
        ) from error
