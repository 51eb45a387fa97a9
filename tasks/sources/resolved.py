"""What all sources share: the values between `resolve` and `fetch`, and the one way bytes reach the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import SourceError, SourceUnavailable
from tasks.models.source_uri import glob_match
from tasks.models.spec import Source
from tasks.sources.trust import check_names, check_type, is_furniture

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Access:
    """What sources need from outside. `hub_endpoint` None is `HF_ENDPOINT` or the public hub."""

    s3: S3Client | None = None
    hub_endpoint: str | None = None


@dataclass(frozen=True)
class PinnedFile:
    """A file before it is fetched. `size` in bytes, None where only the fetch can tell.

    `digest` names what pins the bytes and how: `sha256:…`, `git-blob-sha1:…`, `etag:…` or `wheel-sha256:…`.
    """

    path: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class ResolvedSource:
    """A source pinned to something immutable. `pin` is JSON, and goes whole into the snapshot's identity."""

    uri: str
    pin: Mapping[str, Any]
    files: tuple[PinnedFile, ...]
    trust: tuple[str, ...] = ()


@dataclass(frozen=True)
class SnapshotFile:
    """A file after it was fetched and checked. `sha256` in hex, `size` in bytes."""

    path: str
    size: int
    sha256: str


def pinned(source: Source, about: Mapping[str, Any], files: Iterable[PinnedFile]) -> ResolvedSource:
    """Put the pin of a source together. `about` says what the files' own digests do not."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    pin: dict[str, Any] = {
        **about,
        "files": [{"path": file.path, "size": file.size, "digest": file.digest} for file in ordered],
    }
    if source.trust:
        # Trust is part of the identity: a snapshot taken with it must not satisfy a model that has lost it.
        pin["trust"] = sorted(source.trust)
    return ResolvedSource(source.uri, pin, ordered, source.trust)


def select(source: Source, names: Sequence[str]) -> list[str]:
    """The files to take, by their checked names: what `include` wants, without a repository's furniture.

    Raises UntrustedFile for a name or type that no snapshot may hold, and SourceError `source-entry` when a
    pattern, or the whole source, yields nothing.
    """
    check_names(names)
    for pattern in source.include:
        if not any(glob_match(pattern, name) for name in names):
            raise SourceError(
                f"{source.uri} has no file {pattern!r}, which `include` asks for",
                code="source-entry",
                hint="`*` stays within one folder, `**` crosses them. Files there: " + _few(names),
            )
    wanted = [
        name
        for name in names
        if not is_furniture(name)
        and (not source.include or any(glob_match(pattern, name) for pattern in source.include))
    ]
    if not wanted:
        raise SourceError(f"{source.uri} holds no file to serve", code="source-entry", hint="Look at its files.")
    for name in wanted:
        check_type(name, source.trust)
    return wanted


def save(chunks: Iterable[bytes], target: Path, size: int | None, advance: Callable[[int], None]) -> SnapshotFile:
    """Write a stream to `target`, never following a link that lies there. `advance` gets each chunk's length.

    The file has its name only when it is whole. Raises SourceUnavailable when the stream is not `size` long.
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
            hint="Try again; if it stays so, the source has changed.",
        )
    part.replace(target)
    return SnapshotFile(target.name, done, digest.hexdigest())


def changed(uri: str, name: str) -> SourceError:
    """The error for bytes that are not what the pin says."""
    return SourceError(
        f"{name} of {uri} is no longer what it was when the source was resolved",
        code="source-changed",
        hint="Run again, to resolve the source anew; if it stays so, do not trust the source.",
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
