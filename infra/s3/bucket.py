"""One bucket prefix of an S3 server: small records with conditional writes. `upload` and `download` carry large files.

Conditional writes (`If-None-Match: *`, `If-Match`) are what every promise of the store rests on:
`infra.s3.conditional_writes` finds out whether the server has them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra.errors import PreconditionFailed, SettingsError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHUNK = 8 << 20


@dataclass(frozen=True)
class Entry:
    """One line of a listing. `size` in bytes; `etag` without quotes; `age` in seconds, by the server's own clock."""

    key: str
    size: int
    etag: str
    age: float


@dataclass(frozen=True)
class UnfinishedUpload:
    """Parts of an upload that was neither completed nor given up. `age` in seconds since it was begun."""

    key: str
    upload: str
    age: float


@dataclass(frozen=True)
class StoredObject:
    """A small object read whole. `age` in seconds, by the server's own clock."""

    body: bytes
    etag: str
    age: float


@cache
def _client(endpoint: str, access_key: str, patience_s: float, sign_bodies: bool = True) -> S3Client:
    """One client for all threads; another for other credentials, which boto3's default session would not notice."""
    import boto3
    from botocore.config import Config

    options: dict[str, object] = {"addressing_style": "path"} if endpoint else {}
    if not sign_bodies:
        options |= {"payload_signing_enabled": False}
    config = Config(
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=min(5.0, patience_s),
        read_timeout=patience_s,
        max_pool_connections=16,
        s3=cast(Any, options),
    )
    client = cast(Any, boto3).session.Session().client("s3", endpoint_url=endpoint or None, config=config)
    client.meta.events.register_last("before-call.s3", _expect_nothing)
    return client


def _expect_nothing(params: dict[str, Any], **_: object) -> None:
    """Send bodies without asking first: botocore spins for ever where a connection ends within a `100 Continue`."""
    params["headers"].pop("Expect", None)


@contextmanager
def named_errors(key: str) -> Generator[None]:
    """Errors of the S3 client as StoreError and its kin, SettingsError where there are no credentials."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        code = details.get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        what = f"S3 answered {status} {code} for '{key}'"
        if status in (409, 412):
            raise PreconditionFailed(what) from error
        if status == 501:
            raise StoreError(what, code="store-unsupported") from error
        if status >= 500 or code in ("SlowDown", "RequestTimeout"):
            raise StoreUnavailable(what, hint="the step is tried again by itself") from error
        if status in (401, 403):
            hint = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            raise StoreError(what, code="store-denied", hint=hint) from error
        raise StoreError(what, code="store-missing" if status == 404 else None) from error
    except NoCredentialsError as error:
        raise SettingsError(
            "no S3 credentials were found",
            hint="`enginehouse up` makes them for the embedded stack; elsewhere set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or use any other place where AWS looks",
        ) from error
    except (BotoCoreError, HTTPError) as error:  # urllib3's own where a body ends too early
        raise StoreUnavailable(f"S3 did not answer for '{key}': {error}", hint="is the store up?") from error


def _server_time(answer: Any) -> datetime:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


@dataclass(frozen=True)
class Bucket:
    """`s3://name/prefix`; every key below is relative to the prefix."""

    name: str
    prefix: str
    endpoint: str = ""
    patience_s: float = 60.0
    """How long one request waits for the server's next word before it is sent again."""
    one_writer: str = ""
    """A file, locked by whoever writes with a condition: for a server that knows none, written to by this machine
    alone, which then looks before it writes. Empty: the server looks."""

    @classmethod
    def at(cls, uri: str) -> Bucket:
        """The bucket of `s3://name/prefix`, at AWS_ENDPOINT_URL_S3 where that is set."""
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
                hint="all processes of this machine that use the store have to lock the same file",
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
        """For large bodies whose checksum is among the signed headers, and whose sha256 is in a manifest: they are not
        hashed once more for the signature, by neither side. Over TLS that is how every client does it.
        """
        return _client(self.endpoint, os.environ.get("AWS_ACCESS_KEY_ID", ""), self.patience_s, sign_bodies=False)

    def impatient(self, seconds: float) -> Bucket:
        """The same bucket for small requests that are worth nothing when they come late."""
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

    def create(self, key: str, body: bytes) -> str:
        """Write `key` where nothing is yet; returns its ETag. Raises PreconditionFailed where something is."""
        if self.one_writer:
            return self._put_where(key, body, None)
        with named_errors(key):
            answer = self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=body, IfNoneMatch="*")
        return answer["ETag"].strip('"')

    def replace(self, key: str, body: bytes, etag: str) -> str:
        """Write `key` where it still has `etag`; returns the new ETag. Raises PreconditionFailed where not."""
        if self.one_writer:
            return self._put_where(key, body, etag)
        with named_errors(key):
            answer = self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=body, IfMatch=f'"{etag}"')
        return answer["ETag"].strip('"')

    def swap(self, key: str, body: bytes, etag: str | None) -> str:
        """Write `key` if it still has `etag`, or if it has no object (None); returns the new ETag, as those two do."""
        return self.create(key, body) if etag is None else self.replace(key, body, etag)

    def _put_where(self, key: str, body: bytes, etag: str | None) -> str:
        """Write `key` where it has `etag`, or where nothing is (None); for all processes that lock the same file."""
        lock = Path(self.one_writer)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            there = self.get(key)
            if (None if there is None else there.etag) != etag:
                raise PreconditionFailed(f"'{key}' was written meanwhile")
            return self.put(key, body)

    def put(self, key: str, body: bytes) -> str:
        """Write `key`, whatever is there: for records that have one writer."""
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
        """The names, up to the next `/`, of what has keys below: `prefix` ends with `/` or within a name."""
        with named_errors(prefix):
            pages = self.client.get_paginator("list_objects_v2")
            return [
                found.get("Prefix", "").removesuffix("/").rpartition("/")[2]
                for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + prefix, Delimiter="/")
                for found in page.get("CommonPrefixes", [])
            ]

    def unfinished_uploads(self, prefix: str) -> Iterator[UnfinishedUpload]:
        """Multipart uploads below `prefix` that nobody completed: their parts take space and are in no listing."""
        with named_errors(prefix):
            pages = self.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.name, Prefix=self.prefix + prefix):
                now = _server_time(page)
                for item in page.get("Uploads", []):
                    key = item.get("Key", "").removeprefix(self.prefix)
                    age = (now - item.get("Initiated", now)).total_seconds()
                    yield UnfinishedUpload(key, item.get("UploadId", ""), age)

    def give_up(self, upload: UnfinishedUpload) -> None:
        """Free the parts of an upload. Where it is gone already that is no error."""
        try:
            with named_errors(upload.key):
                self.client.abort_multipart_upload(
                    Bucket=self.name, Key=self.prefix + upload.key, UploadId=upload.upload
                )
        except StoreError as error:
            if error.code != "store-missing":
                raise

    def delete(self, key: str) -> None:
        with named_errors(key):
            self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def digest(self, key: str, progress: Callable[[int], None]) -> str | None:
        """The hexadecimal sha256 of an object's bytes, streamed and kept nowhere; None where there is none."""
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
