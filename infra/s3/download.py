"""Download: several files at once from the store, each hashed while it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreError, StoreUnavailable
from infra.s3.bucket import Bucket
from infra.s3.lanes import CHUNK_BYTES, LANES, in_lanes
from infra.s3.named_errors import named_errors

RANGE_BYTES = 64 << 20
"""Bytes of one request. A server prepares what it is asked for: SeaweedFS works a third less for ranges than for whole
files of hundreds of megabytes."""
_TRIES = 6
_LONGEST_PAUSE_SECONDS = 8.0


@dataclass(frozen=True)
class Wanted:
    """A file to download from `key` to `path`. It must have `size` bytes, `sha256`, and still `etag` in the store."""

    key: str
    path: Path
    size: int
    sha256: str
    etag: str


def download_files(
    bucket: Bucket, files: Sequence[Wanted], progress: Callable[[int], None], *, range_bytes: int = RANGE_BYTES
) -> None:
    """Bring `files` to this disk, each checked against its sha256. Their folders must exist, the files must not.

    `progress` gets bytes, from any thread. Several files come at once, and a file that is larger than its share comes
    in ranges; a few chunks of each are in memory. A transfer that breaks is resumed where it broke. Raises
    ArtifactDamaged if a file is not what was wanted, StoreError (`disk-full`), and StoreUnavailable (retryable).
    """
    share = max(range_bytes, sum(file.size for file in files) // LANES)
    for file in files:
        if file.size > share:
            _by_ranges(bucket, file, progress, range_bytes)
    rest = sorted((file for file in files if file.size <= share), key=lambda file: -file.size)
    with closing(in_lanes(partial(_whole, bucket, file, progress, range_bytes) for file in rest)) as written:
        for _ in written:
            pass


def _whole(bucket: Bucket, file: Wanted, progress: Callable[[int], None], range_bytes: int) -> None:
    """Bring the file in one lane, and hash it on its way."""
    digest = hashlib.sha256()
    with _new(file) as target:
        for chunk in _chunks(bucket, file, 0, file.size, range_bytes):
            digest.update(chunk)
            target.write(chunk)
            progress(len(chunk))
    _require(file, digest.hexdigest())


def _by_ranges(bucket: Bucket, file: Wanted, progress: Callable[[int], None], range_bytes: int) -> None:
    """Bring the file in all lanes. It is hashed from the disk in its order, while it is still in the page cache."""
    digest = hashlib.sha256()
    with _new(file) as target:
        descriptor = target.fileno()

        def bring(first: int, end: int) -> tuple[int, int]:
            written = first
            for chunk in _chunks(bucket, file, first, end, range_bytes):
                progress(len(chunk))
                while chunk:  # once, unless the disk fills up
                    count = os.pwrite(descriptor, chunk, written)
                    written, chunk = written + count, chunk[count:]
            return first, end

        ranges = (
            partial(bring, first, min(first + range_bytes, file.size)) for first in range(0, file.size, range_bytes)
        )
        arrived: dict[int, int] = {}
        hashed = 0
        with closing(in_lanes(ranges)) as written:
            for first, end in written:
                arrived[first] = end
                while hashed in arrived:
                    end = arrived.pop(hashed)
                    _hash(digest, descriptor, hashed, end)
                    hashed = end
    _require(file, digest.hexdigest())


def _hash(digest: Any, descriptor: int, first: int, end: int) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := os.preadv(descriptor, [buffer[: end - first]], first):
        digest.update(buffer[:count])
        first += count


@contextmanager
def _new(file: Wanted) -> Generator[BinaryIO]:
    with _named_disk_errors(file), file.path.open("x+b") as target:
        if file.size:  # a full disk is found before the transfer, not after most of it
            os.posix_fallocate(target.fileno(), 0, file.size)
        yield target


def _chunks(bucket: Bucket, file: Wanted, first: int, end: int, range_bytes: int) -> Iterator[bytes]:
    """The bytes of an object from `first` to `end`, in ranges.

    The client retries a request that fails before its answer; this function retries one that breaks within the answer.
    """
    failures = 0
    while first < end:
        until = min(first + range_bytes, end)
        try:
            with named_errors(file.key):
                body = bucket.client.get_object(
                    Bucket=bucket.name,
                    Key=bucket.prefix + file.key,
                    Range=f"bytes={first}-{until - 1}",
                    IfMatch=f'"{file.etag}"',
                )["Body"]
                while chunk := body.read(CHUNK_BYTES):
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
            if first < until:  # the server sent less than the range, and ended its answer as if that were all
                raise _damaged(file.key)


def _require(file: Wanted, sha256: str) -> None:
    if sha256 != file.sha256:
        raise _damaged(file.key)


def _damaged(key: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        f"the bytes of '{key}' are not those that its manifest names",
        hint="run the rebuild again: it makes the artifact again",
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
