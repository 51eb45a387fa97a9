"""How the bytes of a source reach the disk: a file appears under its name when it is whole."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from infra.errors import SourceError, SourceUnavailable
from tasks.sources.resolved import SnapshotFile

CHUNK_BYTES = 2**20
PAUSE_S = 1.0
_TRIES = 5
"""As many as the hub's client makes."""


def save(chunks: Iterable[bytes], target: Path, size: int | None, advance: Callable[[int], None]) -> SnapshotFile:
    """Write a stream to `target` without following a link at that path. `advance` gets the length of each chunk.

    Raises SourceUnavailable if the stream is not `size` bytes long; None accepts any length.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    digest, done = hashlib.sha256(), 0
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in chunks:
            done += len(chunk)
            if size is not None and done > size:
                break
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    if size is not None and done != size:
        part.unlink()
        raise SourceUnavailable(
            f"{target.name} should have {size} bytes, and {'more' if done > size else done} came",
            hint="Try again. If the error stays, the source has changed.",
        )
    part.replace(target)
    return SnapshotFile(target.name, done, digest.hexdigest())


def resuming(read: Callable[[int], Iterator[bytes]], size: int) -> Iterator[bytes]:
    """The `size` bytes of a file whose transfer goes on where it broke off. `read` gives its bytes from an offset on.

    Raises SourceUnavailable, as `read` does, when it came no further in _TRIES tries in a row.
    """
    done, tries = 0, 0
    while done < size:
        failure = SourceUnavailable(f"the transfer ended after {done} of {size} bytes")
        try:
            for chunk in read(done):
                done, tries = done + len(chunk), 0
                yield chunk
        except SourceUnavailable as error:
            failure = error
        if done < size:
            tries += 1
            if tries == _TRIES:
                raise failure
            time.sleep(PAUSE_S)


def changed(uri: str, name: str) -> SourceError:
    """The error for bytes that differ from their pin."""
    return SourceError(
        f"{name} of {uri} has changed since the source was resolved",
        code="source-changed",
        hint="Run again, to resolve the source again. If the error stays, do not trust the source.",
    )
