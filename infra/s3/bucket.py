"""One prefix of a bucket on an S3 server: small objects and conditional writes. `upload` and `download` carry files.

Every promise of the store rests on conditional writes (`If-None-Match: *`, `If-Match`).
`infra.s3.conditional_writes` finds out whether the server has them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra.errors import PreconditionFailed, SettingsError, StoreError
from infra.s3.if_match import wants_bare_etags
from infra.s3.named_errors import named_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS = 16
"""Of one client, which all threads of this process share: it sends as many requests at once."""
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Entry:
    """One object of a listing. `size` in bytes; `etag` without quotes; `age` in seconds, by the server's own clock."""

    key: str
    size: int
    etag: str
    age: float


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted. `age` in seconds since it began."""

    key: str
    upload: str
    age: float


@dataclass(frozen=True)
class StoredObject:
    """A small object with its bytes. `etag` without quotes; `age` in seconds, by the server's own clock."""

    body: bytes
    etag: str
    age: float


_making_client = threading.Lock()
"""A session makes one client at a time; clients are for all threads."""


@cache
def _session(endpoint: str, access_key: str) -> Any:
    """One for all clients of a server: reading S3's description takes 90 ms, and a further client 7.

    There is another one for other credentials, which boto3's default session would not notice.
    """
    import boto3
    from botocore.session import get_session

    session = cast(Any, get_session)()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return cast(Any, boto3).session.Session(botocore_session=session)


def _timestamp(text: Any) -> datetime:
    """A time as botocore gives it. Its own parser guesses the form for 0.1 ms, a second for 10,000 objects."""
    if isinstance(text, str) and text[10:11] == "T":
        return datetime.fromisoformat(text)
    from botocore.utils import parse_timestamp

    return cast(Any, parse_timestamp)(text)


@cache
def _client(endpoint: str, access_key: str, patience_s: float, sign_bodies: bool = True) -> S3Client:
    """One client for all threads."""
    from botocore.config import Config

    session = _session(endpoint, access_key)
    # A server of one's own seldom has a name for each bucket. Some in the cloud have nothing else: AWS's own
    # configuration says so, as for any client (`s3 = addressing_style = virtual` in ~/.aws/config).
    configured: dict[str, object] = session._session.get_config_variable("s3") or {}
    options: dict[str, object] = (
        {"addressing_style": "path"} if endpoint and "addressing_style" not in configured else {}
    )
    if not sign_bodies:
        options |= {"payload_signing_enabled": False}
    config = Config(
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=min(5.0, patience_s),
        read_timeout=patience_s,
        max_pool_connections=CONNECTIONS,
        s3=cast(Any, options),
    )
    with _making_client:
        client = session.client("s3", endpoint_url=endpoint or None, config=config)
    client.meta.events.register_last("before-call.s3", _expect_nothing)
    return client


def _expect_nothing(params: dict[str, Any], **_: object) -> None:
    """Send bodies without `Expect`: botocore spins for ever if a connection ends within a `100 Continue`."""
    params["headers"].pop("Expect", None)


def _server_time(answer: Any) -> datetime:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


@dataclass(frozen=True)
class Bucket:
    """`s3://name/prefix`; every key below is relative to the prefix."""

    name: str
    prefix: str
    endpoint: str = ""
    patience_s: float = 60.0
    """How long one request waits for the server's next byte before it is sent again."""
    one_writer: str = ""
    """A file that every process locks for a conditional write. It is for servers without conditional writes whose only
    writer is this machine: under the lock, the process compares and then writes. Empty: the server compares."""

    @classmethod
    def at(cls, uri: str) -> Bucket:
        """The bucket of `s3://name/prefix`, at AWS_ENDPOINT_URL_S3 if that is set. Raises SettingsError."""
        if not uri:
            raise SettingsError(
                "no store is set", hint="run `enginehouse up`, or set ENGINEHOUSE_STORE=s3://bucket/prefix"
            )
        scheme, separator, rest = uri.partition("://")
        name, _, prefix = rest.partition("/")
        if scheme != "s3" or not separator or not name:
            raise SettingsError(f"'{uri}' is not a store", hint="a store is s3://bucket or s3://bucket/prefix")
        prefix = prefix.strip("/")
        one_writer = os.environ.get("ENGINEHOUSE_STORE_ONE_WRITER", "")
        if one_writer and not Path(one_writer).is_absolute():
            raise SettingsError(
                f"ENGINEHOUSE_STORE_ONE_WRITER is '{one_writer}', not the absolute path of a file",
                hint="all processes of this machine that use the store must lock the same file",
            )
        return cls(
            name,
            f"{prefix}/" if prefix else "",
            os.environ.get("AWS_ENDPOINT_URL_S3", ""),
            one_writer=one_writer,
        )

    @property
    def client(self) -> S3Client:
        return _client(self.endpoint, os.environ.get("AWS_ACCESS_KEY_ID", ""), self.patience_s)

    @property
    def body_client(self) -> S3Client:
        """A client that does not hash bodies for the request's signature, as every client does over TLS.

        It is for large bodies: their checksum is among the signed headers, and their sha256 is in a manifest.
        """
        return _client(self.endpoint, os.environ.get("AWS_ACCESS_KEY_ID", ""), self.patience_s, sign_bodies=False)

    def impatient(self, seconds: float) -> Bucket:
        """The same bucket for small requests that are worthless after `seconds`."""
        return replace(self, patience_s=min(self.patience_s, max(1.0, seconds)))

    def get(self, key: str) -> StoredObject | None:
        """The object at `key`, or None."""
        try:
            with named_errors(key):
                answer = self.client.get_object(Bucket=self.name, Key=self.prefix + key)
                body = answer["Body"].read()
        except StoreError as error:
            if error.code == "store-missing":
                return None
            raise
        age = (_server_time(answer) - answer["LastModified"]).total_seconds()
        return StoredObject(body, answer["ETag"].strip('"'), age)

    def beginning(self, key: str, length: int) -> bytes:
        """The first bytes of the object at `key`."""
        with named_errors(key):
            answer = self.client.get_object(Bucket=self.name, Key=self.prefix + key, Range=f"bytes=0-{length - 1}")
            return answer["Body"].read()

    def create(self, key: str, body: bytes) -> str:
        """Write `key` if it has no object; returns the ETag. Raises PreconditionFailed if it has one."""
        if self.one_writer:
            return self._put_where(key, body, None)
        with named_errors(key):
            answer = self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=body, IfNoneMatch="*")
        return answer["ETag"].strip('"')

    def replace(self, key: str, body: bytes, etag: str) -> str:
        """Write `key` if it still has `etag`; returns the new ETag. Raises PreconditionFailed if it has not.

        Raises StoreError, code `store-unconditional`, if the server refuses this condition even where it holds.
        """
        if self.one_writer:
            return self._put_where(key, body, etag)
        try:
            return self._put_if_match(key, body, f'"{etag}"')
        except PreconditionFailed:
            if not wants_bare_etags(self.client, self.name, self.prefix):
                raise
        except StoreError as error:
            if error.code != "store-missing":
                raise
            raise PreconditionFailed(error.message) from error  # Amazon's answer where the object is gone
        return self._put_if_match(key, body, etag)

    def _put_if_match(self, key: str, body: bytes, etag: str) -> str:
        with named_errors(key):
            answer = self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=body, IfMatch=etag)
        return answer["ETag"].strip('"')

    def swap(self, key: str, body: bytes, etag: str | None) -> str:
        """`replace` if there is an `etag`, else `create`."""
        return self.create(key, body) if etag is None else self.replace(key, body, etag)

    def _put_where(self, key: str, body: bytes, etag: str | None) -> str:
        """Compare the ETag (None: no object) and write `key`, under the lock of all processes of this machine."""
        lock = Path(self.one_writer)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            existing = self.get(key)
            if (None if existing is None else existing.etag) != etag:
                raise PreconditionFailed(f"another process wrote '{key}' meanwhile")
            return self.put(key, body)

    def put(self, key: str, body: bytes) -> str:
        """Write `key`, whatever it has. For records that have one writer; returns the ETag."""
        with named_errors(key):
            answer = self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=body)
        return answer["ETag"].strip('"')

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix`, in the server's own order."""
        with named_errors(prefix):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + prefix):
                now = _server_time(page)
                for item in page.get("Contents", []):
                    key = item.get("Key", "").removeprefix(self.prefix)
                    age = (now - item.get("LastModified", now)).total_seconds()
                    yield Entry(key, item.get("Size", 0), item.get("ETag", "").strip('"'), age)

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders that begin with `prefix`, up to their next `/`. Only folders with objects exist."""
        with named_errors(prefix):
            pages = self.client.get_paginator("list_objects_v2")
            return [
                found.get("Prefix", "").removesuffix("/").rpartition("/")[2]
                for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + prefix, Delimiter="/")
                for found in page.get("CommonPrefixes", [])
            ]

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Multipart uploads below `prefix` that were not completed. Their parts take space and are in no listing."""
        with named_errors(prefix):
            pages = self.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + prefix):
                now = _server_time(page)
                for item in page.get("Uploads", []):
                    key = item.get("Key", "").removeprefix(self.prefix)
                    age = (now - item.get("Initiated", now)).total_seconds()
                    yield UnfinishedUpload(key, item.get("UploadId", ""), age)

    def give_up(self, upload: UnfinishedUpload) -> None:
        """Abort an upload, which frees its parts. One that does not exist any more is no error."""
        try:
            with named_errors(upload.key):
                self.client.abort_multipart_upload(
                    Bucket=self.name, Key=self.prefix + upload.key, UploadId=upload.upload
                )
        except StoreError as error:
            if error.code != "store-missing":
                raise

    def delete(self, key: str) -> None:
        """Delete the object at `key`. A key without one is no error."""
        with named_errors(key):
            self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def digest(self, key: str, progress: Callable[[int], None]) -> str | None:
        """The hexadecimal sha256 of an object's bytes, which are streamed and kept nowhere; None if there is no object.

        `progress` gets the size of each piece, in bytes.
        """
        digest = hashlib.sha256()
        try:
            with named_errors(key):
                body = self.client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"]
                for chunk in body.iter_chunks(_CHUNK):
                    digest.update(chunk)
                    progress(len(chunk))
        except StoreError as error:
            if error.code == "store-missing":
                return None
            raise
        return digest.hexdigest()
