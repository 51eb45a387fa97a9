from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import boto3
import pytest

from infra.errors import SettingsError, SourceError, SourceUnavailable, UntrustedFile
from infra.processes.sessions import free_ports
from infra.s3.seaweedfs import REGION
from tasks.models.source import Source
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import Access, ResolvedSource, SnapshotFile

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Connect = Callable[[str, str], "S3Client"]


@pytest.fixture
def connect(seaweedfs: tuple[str, str, str]) -> Iterator[Connect]:
    """Makes clients by URL and secret key."""
    made: list[S3Client] = []

    def make(url: str, secret_key: str) -> S3Client:
        session = boto3.session.Session(seaweedfs[1], secret_key, region_name=REGION)
        made.append(cast(Any, session).client("s3", endpoint_url=url))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def bucket(s3: S3Client) -> str:
    name = f"sources-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def files(s3: S3Client, bucket: str, gguf: bytes) -> dict[str, bytes]:
    files = {"model.gguf": gguf, "extra/notes.md": b"Nothing to see."}
    s3.put_object(Bucket=bucket, Key="models/tiny/", Body=b"")
    s3.put_object(Bucket=bucket, Key="models/tiny-other/evil.py", Body=b"import os")
    for name, data in files.items():
        s3.put_object(Bucket=bucket, Key=f"models/tiny/{name}", Body=data)
    return files


def look(s3: S3Client, uri: str, **source: Any) -> ResolvedSource:
    return resolve(Source.model_validate({"uri": uri, **source}), Access(s3=s3))


def take(s3: S3Client, resolved: ResolvedSource, folder: Path) -> tuple[SnapshotFile, ...]:
    return fetch(resolved, folder, lambda done, total: None, Access(s3=s3))


def test_a_prefix_is_pinned_by_etags(s3: S3Client, bucket: str, files: dict[str, bytes]) -> None:
    resolved = look(s3, f"s3://{bucket}/models/tiny/")
    assert resolved.pin == {
        "scheme": "s3",
        "bucket": bucket,
        "base": "models/tiny/",
        "versions": {},
        "files": [
            {"path": name, "size": len(files[name]), "digest": f"etag:{hashlib.md5(files[name]).hexdigest()}"}
            for name in sorted(files)
        ],
    }
    assert json.loads(json.dumps(resolved.pin)) == resolved.pin


def test_a_prefix_and_an_object_are_fetched(s3: S3Client, bucket: str, files: dict[str, bytes], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    resolved = look(s3, f"s3://{bucket}/models/tiny")
    fetched = fetch(resolved, tmp_path / "all", lambda done, total: seen.append((done, total)), Access(s3=s3))
    assert [file.path for file in fetched] == sorted(files)
    for file in fetched:
        assert (tmp_path / "all" / file.path).read_bytes() == files[file.path]
        assert file.sha256 == hashlib.sha256(files[file.path]).hexdigest()
    total = sum(map(len, files.values()))
    assert seen[-1] == (total, total)
    (single,) = take(s3, look(s3, f"s3://{bucket}/models/tiny/model.gguf"), tmp_path / "one")
    assert single.path == "model.gguf"
    assert (tmp_path / "one" / "model.gguf").read_bytes() == files["model.gguf"]


def test_an_object_that_changed_is_an_error(s3: S3Client, bucket: str, files: dict[str, bytes], tmp_path: Path) -> None:
    resolved = look(s3, f"s3://{bucket}/models/tiny")
    s3.put_object(Bucket=bucket, Key="models/tiny/model.gguf", Body=files["model.gguf"][:-1] + b"!")
    with pytest.raises(SourceError) as caught:
        take(s3, resolved, tmp_path)
    assert caught.value.code == "source-changed" and "model.gguf" in caught.value.message
    assert not (tmp_path / "model.gguf").exists()
    s3.delete_object(Bucket=bucket, Key="models/tiny/model.gguf")
    with pytest.raises(SourceError) as caught:
        take(s3, resolved, tmp_path)
    assert caught.value.code == "source-changed"


def test_in_a_versioned_bucket_the_pinned_version_is_fetched(
    s3: S3Client, bucket: str, gguf: bytes, tmp_path: Path
) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket=bucket, Key="tiny/model.gguf", Body=gguf)
    resolved = look(s3, f"s3://{bucket}/tiny")
    assert resolved.pin["versions"] == {"model.gguf": first["VersionId"]}
    s3.put_object(Bucket=bucket, Key="tiny/model.gguf", Body=gguf + b"!")
    take(s3, resolved, tmp_path)
    assert (tmp_path / "model.gguf").read_bytes() == gguf


def test_missing_and_refused_have_codes(
    s3: S3Client, bucket: str, files: dict[str, bytes], seaweedfs: tuple[str, str, str], connect: Connect
) -> None:
    cases = [
        (s3, f"s3://{bucket}/models/absent", "source-missing"),
        (s3, "s3://no-such-bucket/models", "source-missing"),
        (connect(seaweedfs[0], "wrong"), f"s3://{bucket}/models/tiny", "source-gated"),
    ]
    for client, uri, code in cases:
        with pytest.raises(SourceError) as caught:
            look(client, uri)
        assert (uri, caught.value.code) == (uri, code)
    with pytest.raises(SourceError) as caught:
        look(s3, f"s3://{bucket}/models/tiny", include=["*.json"])
    assert caught.value.code == "source-entry"
    with pytest.raises(SettingsError) as unset:
        resolve(Source(uri=f"s3://{bucket}/models/tiny"))
    assert unset.value.code == "settings"


def test_an_unreachable_server_is_worth_another_try(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(SourceUnavailable) as caught:
        look(connect(f"http://127.0.0.1:{free_ports(1)[0]}", "secret"), "s3://bucket/models")
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("modeling.py", "untrusted-python"),
        ("weights.pt", "untrusted-pickle"),
        ("MODEL.gguf", "untrusted-name"),
        ("install.sh", "untrusted-type"),
    ],
)
def test_hostile_objects_are_refused_before_any_download(
    s3: S3Client, bucket: str, files: dict[str, bytes], key: str, code: str
) -> None:
    s3.put_object(Bucket=bucket, Key=f"models/tiny/{key}", Body=b"x")
    with pytest.raises(UntrustedFile) as caught:
        look(s3, f"s3://{bucket}/models/tiny")
    assert caught.value.code == code


def test_a_body_that_breaks_off_is_worth_another_try(
    s3: S3Client, bucket: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = look(s3, f"s3://{bucket}/models/tiny/model.gguf")
    get_object = s3.get_object

    def broken(**request: Any) -> Any:
        answer: Any = get_object(**request)
        answer["Body"].read(30)
        answer["Body"]._raw_stream = io.BytesIO()  # the connection ends before the body does
        return answer

    monkeypatch.setattr(s3, "get_object", broken)
    with pytest.raises(SourceUnavailable) as caught:
        take(s3, resolved, tmp_path)
    assert caught.value.retryable
    assert not (tmp_path / "model.gguf").exists()


def test_one_part_of_a_split_gguf_brings_its_siblings(s3: S3Client, bucket: str, gguf: bytes, tmp_path: Path) -> None:
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for name in (*names, "m-00001-of-00009.gguf", "m.gguf"):
        s3.put_object(Bucket=bucket, Key=f"split/{name}", Body=gguf)
    resolved = look(s3, f"s3://{bucket}/split/{names[1]}")
    assert [file.path for file in take(s3, resolved, tmp_path / "snapshot")] == names
    with pytest.raises(SourceError) as caught:
        look(s3, f"s3://{bucket}/split/m-00001-of-00009.gguf")
    assert caught.value.code == "source-entry" and "m-00002-of-00009.gguf" in caught.value.message
