"""`file:///path`: a file, or a folder with everything below it, on the machine that runs the step.

The file may be one part of a split GGUF: the others lie beside it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from infra.errors import SourceError, UntrustedFile
from infra.progress import ByteCounter, Progress
from tasks.gguf.parts import parts_of
from tasks.models.source import Source
from tasks.models.source_uri import FileUri
from tasks.sources.download import CHUNK_BYTES, changed, save
from tasks.sources.names import select
from tasks.sources.resolved import PinnedFile, ResolvedSource, SnapshotFile, pinned


def resolve(source: Source, uri: FileUri) -> ResolvedSource:
    """Pin every file by its sha256, which reads all files. The pin holds their bytes' digests and not their folder."""
    base, names = _selected(source, uri)
    files = [_pin(base, name) for name in names]
    if source.sha256 is not None and files[0].digest != f"sha256:{source.sha256}":
        raise SourceError(f"{uri} has {files[0].digest}, and the model's file says {source.sha256}", code="source-hash")
    return pinned(source, {"scheme": "file"}, files)


def sizes(source: Source, uri: FileUri) -> dict[str, int]:
    """The bytes of every file that `resolve` pins, by name. Reads none. Raises as `resolve` does."""
    base, names = _selected(source, uri)
    return {name: (base / name).lstat().st_size for name in names}


def _selected(source: Source, uri: FileUri) -> tuple[Path, list[str]]:
    root = Path(uri.path)
    if not root.exists():
        raise SourceError(f"{uri} does not exist", code="source-missing", hint="Look at the path.")
    is_several = root.is_dir() or len(parts_of(root.name)) > 1
    if source.sha256 is not None and is_several:
        raise SourceError(
            f"{uri} is more than one file, and a sha256 belongs to one", hint="Name the file, or drop the sha256."
        )
    base = root if root.is_dir() else root.parent
    return base, select(source, list(_names(root, base)))


def fetch(resolved: ResolvedSource, uri: FileUri, destination: Path, progress: Progress) -> tuple[SnapshotFile, ...]:
    """Copy the files and compare each with its pin."""
    root = Path(uri.path)
    base = root if root.is_dir() else root.parent
    advance = ByteCounter(progress, resolved.known_bytes)
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
    """Every file, relative to `base`. Raises UntrustedFile for links, wherever they lead, and for special files."""
    if root.is_dir() and not root.is_symlink():
        paths = sorted(root.rglob("*"))
    else:
        paths = [path for path in map(root.with_name, parts_of(root.name)) if path.is_symlink() or path.exists()]
    for path in paths:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            yield path.relative_to(base).as_posix()
        elif not stat.S_ISDIR(mode):
            raise UntrustedFile(
                f"{path} is a link or a special file",
                code="untrusted-link",
                hint="Replace it by a copy of the file that it points to.",
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
    # O_NOFOLLOW: the name may have become a link since it was checked.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
