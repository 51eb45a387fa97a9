"""`s3://bucket/prefix`: one object with the other parts of a split GGUF beside it, or all objects below a prefix."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import JsonValue

from infra.errors import SettingsError, SourceError, SourceUnavailable
from infra.progress import ByteCounter, Progress
from tasks.gguf.parts import parts_of
from tasks.models.source import Source
from tasks.models.source_uri import S3Uri
from tasks.sources.download import CHUNK_BYTES, changed, save
from tasks.sources.names import Choose, select
from tasks.sources.resolved import Access, PinnedFile, ResolvedSource, SnapshotFile, pinned

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def resolve(source: Source, uri: S3Uri, access: Access, choose: Choose = select) -> ResolvedSource:
    """Pin every object by size, ETag and, in a versioned bucket, VersionId. One HEAD an object.

    `choose` returns the names to take of those that are there. If the bucket has both the object `prefix` and objects
    below `prefix/`, those below are taken.
    """
    client = _client(access)
    base = f"{uri.prefix}/"
    with _s3_errors(uri):
        names = _names_below(client, uri.bucket, base)
        if not names:
            folder, slash, name = uri.prefix.rpartition("/")
            base, parts = folder + slash, parts_of(name)
            client.head_object(Bucket=uri.bucket, Key=uri.prefix)  # a missing object is an error before its name is
            names = [name]
            if len(parts) > 1:
                start = name.rpartition("-of-")[0][:-5]  # without the part's number
                names = [found for found in _names_below(client, uri.bucket, base, start) if found in parts]
        names = choose(source, names)
        heads = {name: client.head_object(Bucket=uri.bucket, Key=base + name) for name in names}
    # A bucket without versioning gives no VersionId, or "null".
    versions = {name: head.get("VersionId", "null") for name, head in heads.items()}
    about: dict[str, JsonValue] = {
        "scheme": "s3",
        "bucket": uri.bucket,
        "base": base,
        "versions": {name: version for name, version in versions.items() if version != "null"},
    }
    files = [PinnedFile(name, head["ContentLength"], "etag:" + head["ETag"].strip('"')) for name, head in heads.items()]
    return pinned(source, about, files)


def fetch(
    resolved: ResolvedSource, uri: S3Uri, destination: Path, progress: Progress, access: Access
) -> tuple[SnapshotFile, ...]:
    """Download with `If-Match`, so that an object that changed since `resolve` is an error and never mixed in.

    If an object was stored with a checksum, botocore compares its bytes with it.
    """
    client = _client(access)
    advance = ByteCounter(progress, resolved.known_bytes)
    base, versions = str(resolved.pin["base"]), cast(dict[str, str], resolved.pin["versions"])
    fetched: list[SnapshotFile] = []
    for file in resolved.files:
        request: dict[str, str] = {
            "Bucket": uri.bucket,
            "Key": base + file.path,
            "IfMatch": f'"{file.digest.removeprefix("etag:")}"',
            "ChecksumMode": "ENABLED",
        }
        if version := versions.get(file.path):
            request["VersionId"] = version
        with _s3_errors(uri, file.path):
            body = cast(Any, client).get_object(**request)["Body"]
            with body:
                saved = save(body.iter_chunks(CHUNK_BYTES), destination / file.path, file.size, advance)
        fetched.append(SnapshotFile(file.path, saved.size, saved.sha256))
    return tuple(fetched)


def _client(access: Access) -> S3Client:
    if access.s3 is None:
        raise SettingsError("an s3:// source needs an S3 client", hint="Set the store: eval $(enginehouse env)")
    return access.s3


def _names_below(client: S3Client, bucket: str, base: str, start: str = "") -> list[str]:
    """The names of all objects below `base` that begin with `start`."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=base + start)
    keys = [entry.get("Key", "") for page in pages for entry in page.get("Contents", [])]
    # Consoles mark an empty folder by a key that ends with a slash.
    return [key.removeprefix(base) for key in keys if not key.endswith("/")]


@contextmanager
def _s3_errors(uri: S3Uri, name: str = "") -> Generator[None]:
    """Turn S3's errors into Enginehouse's own. `name` is that of a file that existed when it was resolved."""
    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        if name and status in (404, 412):
            raise changed(str(uri), name) from error
        if status == 404:
            raise SourceError(
                f"{uri} does not exist", code="source-missing", hint="Look at the bucket and the prefix."
            ) from error
        if status in (401, 403):
            raise SourceError(
                f"the S3 server refuses to show {uri}",
                code="source-gated",
                hint="Give the credentials in use the right to list and read it.",
            ) from error
        raise SourceUnavailable(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise SourceUnavailable(f"{uri}: {error}", hint="Is the S3 server reachable?") from error
