"""`file:///path`: a file, or a folder with all below it, of the machine that runs the step."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from infra.errors import SourceError, UntrustedFile
from infra.progress import ByteCounter, Progress
from tasks.models.source_uri import FileUri
from tasks.models.spec import Source
from tasks.sources.resolved import (
    CHUNK_BYTES,
    PinnedFile,
    ResolvedSource,
    SnapshotFile,
    changed,
    pinned,
    save,
    select,
)


def resolve(source: Source, uri: FileUri) -> ResolvedSource:
    """Pin every file by its sha256, which reads them all. The path is no part of the pin: the bytes are."""
    root = Path(uri.path)
    if not root.exists():
        raise SourceError(f"{uri} does not exist", code="source-missing", hint="Look at the path.")
    if source.sha256 is not None and root.is_dir():
        raise SourceError(
            f"{uri} is a folder, and a sha256 is that of one file", hint="Name the file, or drop the sha256."
        )
    base = root if root.is_dir() else root.parent
    names = select(source, list(_names(root, base)))
    files = [_pin(base, name) for name in names]
    if source.sha256 is not None and files[0].digest != f"sha256:{source.sha256}":
        raise SourceError(f"{uri} has {files[0].digest}, and the model's file says {source.sha256}", code="source-hash")
    return pinned(source, {"scheme": "file"}, files)


def fetch(resolved: ResolvedSource, uri: FileUri, destination: Path, progress: Progress) -> tuple[SnapshotFile, ...]:
    """Copy the files, each compared with its pin."""
    root = Path(uri.path)
    base = root if root.is_dir() else root.parent
    advance = ByteCounter(progress, sum(file.size or 0 for file in resolved.files))
    fetched: list[SnapshotFile] = []
    for file in resolved.files:
        target = destination / file.path
        if not _is_plain(base / file.path, file.size):
            raise changed(resolved.uri, file.path)
        saved = save(_chunks(base / file.path), target, file.size, advance)
        if f"sha256:{saved.sha256}" != file.digest:
            target.unlink()
            raise changed(resolved.uri, file.path)
        fetched.append(SnapshotFile(file.path, saved.size, saved.sha256))
    return tuple(fetched)


def _names(root: Path, base: Path) -> Iterator[str]:
    """Every file, relative to `base`. Links and special files are refused, wherever a link leads."""
    found = sorted(root.rglob("*")) if root.is_dir() and not root.is_symlink() else [root]
    for path in found:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield path.relative_to(base).as_posix()
        elif not stat.S_ISDIR(mode):
            raise UntrustedFile(
                f"{path} is a link or a special file",
                code="untrusted-link",
                hint="Copy what it points to in its place.",
            )


def _is_plain(path: Path, size: int | None) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _pin(base: Path, name: str) -> PinnedFile:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(base / name):
        digest.update(chunk)
        size += len(chunk)
    return PinnedFile(name, size, f"sha256:{digest.hexdigest()}")


def _chunks(path: Path) -> Iterator[bytes]:
    # A name may have become a link since it was looked at.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
