"""Resolve and fetch a source of any scheme, each through the module of its scheme.

Those with a client are imported when a source has that scheme: they bring more than all else that a plan needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra.progress import Progress
from tasks.models.source import Source
from tasks.models.source_uri import ArtifactsUri, FileUri, HubUri, ModelsUri, NgcUri, PipUri, S3Uri, parse_source
from tasks.sources import file, pip
from tasks.sources.contents import check_content
from tasks.sources.names import select_about
from tasks.sources.resolved import NO_ACCESS, Access, PinnedFile, ResolvedSource, SnapshotFile


def resolve(source: Source, access: Access = NO_ACCESS) -> ResolvedSource:
    """Pin a source: which files it has, their sizes, and the digests that identify their bytes. Downloads no weights.

    Raises SourceError with a code that names the cause (`source-missing`, `source-gated`, `source-revision`,
    `source-entry`, `source-mirror`, `source-redirect`), UntrustedFile for a file that no snapshot may hold, and
    SourceUnavailable (retryable) if the other side does not answer.
    """
    match parse_source(source.uri):
        case HubUri() as uri:
            from tasks.sources import hf

            return hf.resolve(source, uri, access)
        case S3Uri() as uri:
            from tasks.sources import s3

            return s3.resolve(source, uri, access)
        case NgcUri() as uri:
            from tasks.sources import ngc

            return ngc.resolve(source, uri)
        case ModelsUri() | ArtifactsUri() as uri:
            from tasks.sources import mlflow

            return mlflow.resolve(source, uri, access)
        case FileUri() as uri:
            return file.resolve(source, uri)
        case PipUri() as uri:
            return pip.resolve(source, uri)


def resolve_about(uri: str, access: Access = NO_ACCESS) -> ResolvedSource:
    """Pin configuration and tokenizer of a model of the Hub. Raises as `resolve` does."""
    from tasks.sources import hf

    parsed = parse_source(uri)
    assert isinstance(parsed, HubUri), "the model's file was checked"
    return hf.resolve(Source(uri=uri), parsed, access, choose=select_about)


def snapshot_files(resolved: ResolvedSource) -> Mapping[str, PinnedFile]:
    """The files of a source by their paths in its snapshot."""
    match parse_source(resolved.uri):
        case ModelsUri() | ArtifactsUri():
            from tasks.sources import mlflow

            return mlflow.snapshot_files(resolved)
        case _:
            return {file.path: file for file in resolved.files}


def fetch(
    resolved: ResolvedSource, destination: Path, progress: Progress, access: Access = NO_ACCESS
) -> tuple[SnapshotFile, ...]:
    """Download a resolved source into the folder `destination`, which then holds its files and nothing more.

    Streams files of any size. Every file is compared with its pin, then its content is checked; a file that fails is
    removed. Fetching again into the same folder is allowed.
    Raises as `resolve` does, and SourceError `source-changed` if the bytes differ from their pin.
    """
    destination.mkdir(parents=True, exist_ok=True)
    match parse_source(resolved.uri):
        case HubUri() as uri:
            from tasks.sources import hf

            files = hf.fetch(resolved, uri, destination, progress, access)
        case S3Uri() as uri:
            from tasks.sources import s3

            files = s3.fetch(resolved, uri, destination, progress, access)
        case NgcUri() as uri:
            from tasks.sources import ngc

            files = ngc.fetch(resolved, uri, destination, progress)
        case ModelsUri() | ArtifactsUri():
            from tasks.sources import mlflow

            files = mlflow.fetch(resolved, destination, progress, access)
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
