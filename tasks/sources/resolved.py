"""The values between `resolve` and `fetch`: what a source was pinned to, and what was fetched of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue

from tasks.models.source import Source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class Access:
    """What sources need from outside. `hub_endpoint` None means `HF_ENDPOINT`, or the public hub if that is unset.

    `mlflow` is the address of a tracking server; empty if there is none.
    """

    s3: S3Client | None = None
    hub_endpoint: str | None = None
    mlflow: str = ""


NO_ACCESS = Access()


@dataclass(frozen=True)
class PinnedFile:
    """A file before it is fetched. `size` in bytes; None if only the fetch can find it out.

    `digest` names what pins the bytes and how: `sha256:…`, `git-blob-sha1:…`, `etag:…` or `wheel-sha256:…`. With
    `ngc-version:…` and `mlflow:…` it is a version that does not change, and the size is all that is compared.
    """

    path: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class ResolvedSource:
    """A source pinned to something immutable. The whole `pin` enters the snapshot's identity."""

    uri: str
    pin: Mapping[str, JsonValue]
    files: tuple[PinnedFile, ...]
    trust: tuple[str, ...] = ()
    renamed: str = ""
    """What the hub calls the repository, where that is not the name in `uri`: it sends on who asks by a former one."""
    licence: str = ""
    """As the hub names it; empty if it does not."""
    gated: bool = False
    """Whether the hub gives the files only to those who accepted that."""

    @property
    def known_bytes(self) -> int:
        """The sum of the sizes that are known before the fetch."""
        return sum(file.size or 0 for file in self.files)


@dataclass(frozen=True)
class SnapshotFile:
    """A file after it was fetched and checked. `sha256` in hex, `size` in bytes."""

    path: str
    size: int
    sha256: str


def pinned(source: Source, about: Mapping[str, JsonValue], files: Iterable[PinnedFile]) -> ResolvedSource:
    """Put the pin of a source together. `about` holds what the digests of the files do not cover."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    pin: dict[str, JsonValue] = {
        **about,
        "files": [{"path": file.path, "size": file.size, "digest": file.digest} for file in ordered],
    }
    if source.trust:
        # Trust is part of the identity: a snapshot taken with it must not satisfy a model that has lost it.
        pin["trust"] = [*sorted(source.trust)]
    return ResolvedSource(source.uri, pin, ordered, source.trust)
