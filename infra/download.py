"""Download: files from the store in parallel ranges, hashed and written in their order."""

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
from itertools import count
from pathlib import Path

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreError, StoreUnavailable
from infra.lanes import in_lanes
from infra.s3 import Bucket, named_errors

RANGE_BYTES = 16 << 20
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

    `progress` gets bytes, in this thread. A few ranges are in memory at once. A range whose connection breaks is asked
    for again. Raises ArtifactDamaged where a file is not what was wanted, StoreError (`disk-full` where it is), and
    StoreUnavailable, which is retryable.
    """
    work = (piece for file in files for piece in _pieces(bucket, file, range_bytes))
    with closing(in_lanes(work)) as ranges:
        for file in files:
            digest, missing = hashlib.sha256(), file.size
            with _named_disk_errors(file), file.path.open("xb") as target:
                if missing:  # a full disk is found before the transfer, not after most of it
                    os.posix_fallocate(target.fileno(), 0, missing)
                while missing:
                    data = next(ranges)
                    digest.update(data)
                    target.write(data)
                    missing -= len(data)
                    progress(len(data))
            if digest.hexdigest() != file.sha256:
                raise _damaged(file.key)


def _pieces(bucket: Bucket, file: Wanted, range_bytes: int) -> Iterator[Callable[[], bytes]]:
    for first in range(0, file.size, range_bytes):
        yield partial(_range, bucket, file, first, min(range_bytes, file.size - first))


def _range(bucket: Bucket, file: Wanted, first: int, size: int) -> bytes:
    """`size` bytes of an object from `first` on. The client retries what fails before an answer; this, a broken one."""
    for attempt in count(1):
        try:
            with named_errors(file.key):
                answer = bucket.client.get_object(
                    Bucket=bucket.name,
                    Key=bucket.prefix + file.key,
                    Range=f"bytes={first}-{first + size - 1}",
                    IfMatch=f'"{file.etag}"',
                )
                data = answer["Body"].read()
        except PreconditionFailed as error:
            raise _damaged(file.key) from error
        except StoreUnavailable:
            if attempt == _TRIES:
                raise
            time.sleep(random.uniform(0, min(2.0**attempt, _LONGEST_PAUSE_SECONDS)))
            continue
        if len(data) != size:
            raise _damaged(file.key)
        return data
    raise AssertionError  # count never ends


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
