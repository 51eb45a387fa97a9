"""Where weights come from, one module a scheme.

`resolve` pins a source to something immutable without downloading weights; `fetch` downloads exactly that and
checks every file against its pin.
"""

from __future__ import annotations

from pathlib import Path

from infra.progress import Progress
from tasks.models.source_uri import FileUri, HubUri, PipUri, S3Uri, SourceUri, parse_source
from tasks.models.spec import Source
from tasks.sources import file, hf, pip, s3
from tasks.sources.resolved import Access, PinnedFile, ResolvedSource, SnapshotFile
from tasks.sources.trust import check_content

__all__ = [
    "NO_ACCESS",
    "Access",
    "PinnedFile",
    "Progress",
    "ResolvedSource",
    "SnapshotFile",
    "SourceUri",
    "fetch",
    "parse_source",
    "resolve",
]

NO_ACCESS = Access()


def resolve(source: Source, access: Access = NO_ACCESS) -> ResolvedSource:
    """Pin a source: which files, how long, and what their bytes are known by.

    Raises SourceError with a code that says what is wrong (`source-missing`, `source-gated`,
    `source-revision`, `source-entry`), UntrustedFile for what the Trust rules refuse, SourceUnavailable
    (retryable) when the other side does not answer.
    """
    match parse_source(source.uri):
        case HubUri() as uri:
            return hf.resolve(source, uri, access)
        case S3Uri() as uri:
            return s3.resolve(source, uri, access)
        case FileUri() as uri:
            return file.resolve(source, uri)
        case PipUri() as uri:
            return pip.resolve(source, uri)


def fetch(
    resolved: ResolvedSource, destination: Path, progress: Progress, access: Access = NO_ACCESS
) -> tuple[SnapshotFile, ...]:
    """Download a resolved source into the folder `destination`, which then holds its files and nothing more.

    Streams, whatever the size of a file. Every file is checked against its pin, then against the Trust rules;
    one that fails is not left behind. Fetching again into the same folder is allowed.
    Raises as `resolve` does, and SourceError `source-changed` when the bytes are not the pinned ones.
    """
    destination.mkdir(parents=True, exist_ok=True)
    match parse_source(resolved.uri):
        case HubUri() as uri:
            files = hf.fetch(resolved, uri, destination, progress, access)
        case S3Uri() as uri:
            files = s3.fetch(resolved, uri, destination, progress, access)
        case FileUri() as uri:
            files = file.fetch(resolved, uri, destination, progress)
        case PipUri() as uri:
            files = pip.fetch(resolved, uri, destination, progress)
    for snapshot_file in files:
        path = destination / snapshot_file.path
        try:
            check_content(path, snapshot_file.path, resolved.trust)
        except BaseException:
            path.unlink()
            raise
    return files
