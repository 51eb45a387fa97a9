"""Files to a real S3 server and back: what was sent is not sent again, and nothing is taken on trust."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from infra.errors import ArtifactDamaged, StoreError
from infra.s3.bucket import Bucket
from infra.s3.download import Wanted, download_files
from infra.s3.lanes import LANES
from infra.s3.upload import StoredFile, upload_files

PART = 5 << 20  # the least that S3 takes
PARTS = LANES + 6  # more than are on their way at once


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {"model.bin": tmp_path / "model.bin", "small": tmp_path / "small", "empty": tmp_path / "empty"}
    made["model.bin"].write_bytes(os.urandom((PARTS - 1) * PART + 1000))
    made["small"].write_bytes(b"small")
    made["empty"].touch()
    return made


def upload(
    bucket: Bucket, files: dict[str, Path], *, resume: bool = False, fail_after: int = 99
) -> dict[str, StoredFile]:
    seen = 0

    def progress(count: int) -> None:
        nonlocal seen
        seen += 1
        if seen > fail_after:
            raise KeyboardInterrupt

    return upload_files(bucket, "stored/", files, progress, resume=resume, part_bytes=PART)


@contextmanager
def sent(bucket: Bucket) -> Generator[list[str]]:
    """The names of the calls that send bytes, as they are made."""
    calls: list[str] = []

    def note(model: Any, **_: object) -> None:
        if model.name in ("UploadPart", "PutObject"):
            calls.append(model.name)

    events: Any = bucket.body_client.meta.events
    events.register("before-call.s3", note)
    try:
        yield calls
    finally:
        events.unregister("before-call.s3", note)


def check(bucket: Bucket, files: dict[str, Path], stored: dict[str, StoredFile]) -> None:
    assert list(stored) == list(files)
    for name, path in files.items():
        record = bucket.get(f"stored/{name}")
        assert record is not None and record.body == path.read_bytes() and record.etag == stored[name].etag
        assert stored[name].sha256 == hashlib.sha256(record.body).hexdigest()
        assert stored[name].checksum.startswith("CRC64NVME:FULL_OBJECT:")


def test_what_was_sent_is_not_sent_again(bucket: Bucket, files: dict[str, Path]) -> None:
    with sent(bucket) as calls, pytest.raises(KeyboardInterrupt):
        upload(bucket, files, fail_after=2)
    first = len(calls)
    assert first >= 3 and not list(bucket.list("stored/model.bin"))
    with sent(bucket) as calls:
        check(bucket, files, upload(bucket, files, resume=True))
    assert len(calls) == PARTS + 2 - first
    with sent(bucket) as calls:
        check(bucket, files, upload(bucket, files, resume=True))
    # SeaweedFS keeps no checksum of an empty object.
    assert len(calls) <= 1


def test_a_part_of_other_bytes_is_sent_again(bucket: Bucket, files: dict[str, Path]) -> None:
    with pytest.raises(KeyboardInterrupt):
        upload(bucket, files, fail_after=2)
    with files["model.bin"].open("r+b") as file:
        file.seek(PART)
        file.write(b"other")
    check(bucket, files, upload(bucket, files, resume=True))


def test_an_object_of_other_bytes_is_sent_again(bucket: Bucket, files: dict[str, Path]) -> None:
    upload(bucket, files)
    files["small"].write_bytes(b"other")
    with sent(bucket) as calls:
        check(bucket, files, upload(bucket, files, resume=True))
    assert "UploadPart" not in calls


def test_a_lost_answer_to_the_last_call(
    bucket: Bucket, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete: Any = bucket.client.complete_multipart_upload

    def lost(**arguments: Any) -> None:
        complete(**arguments)
        gone = {"Error": {"Code": "NoSuchUpload"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
        raise ClientError(cast(Any, gone), "CompleteMultipartUpload")

    monkeypatch.setattr(bucket.client, "complete_multipart_upload", lost)
    check(bucket, files, upload(bucket, files))


@pytest.mark.parametrize("parts", [2, 1], ids=["of both parts", "of one part"])
def test_a_checksum_of_parts_says_nothing_of_the_file(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """SeaweedFS 4.36, RustFS: a composite checksum, and no ChecksumType."""
    whole: Any = bucket.client.head_object

    def composite(**arguments: Any) -> dict[str, Any]:
        head: dict[str, Any] = whole(**arguments)
        del head["ChecksumType"]
        return head | {"ChecksumCRC64NVME": f"xD8mWxuAJzI=-{parts}"}

    monkeypatch.setattr(bucket.client, "head_object", composite)
    model = {"model.bin": tmp_path / "model.bin"}
    model["model.bin"].write_bytes(os.urandom(PART + 1000))
    if parts == 2:
        stored = upload(bucket, model)["model.bin"]
        assert stored.checksum == "CRC64NVME:COMPOSITE:xD8mWxuAJzI=-2"
        record = bucket.get("stored/model.bin")
        assert record is not None and hashlib.sha256(record.body).hexdigest() == stored.sha256
        with sent(bucket) as calls:
            assert upload_files(bucket, "stored/", model, lambda count: None, resume=True, part_bytes=PART)
        assert len(calls) == 2  # such an object cannot be told from another one: it is sent again
    else:
        with pytest.raises(ArtifactDamaged) as caught:
            upload(bucket, model)
        assert caught.value.retryable and bucket.get("stored/model.bin") is None


def test_a_file_that_grows_meanwhile(bucket: Bucket, files: dict[str, Path]) -> None:
    def grow(count: int) -> None:
        with files["model.bin"].open("ab") as file:
            file.write(b"more")

    before = {f"small{number}": files["small"] for number in range(10)}
    with pytest.raises(ArtifactDamaged) as caught:
        upload_files(bucket, "stored/", before | files, grow, part_bytes=PART)
    assert caught.value.code == "artifact-damaged" and str(files["model.bin"]) in caught.value.message


def test_a_server_that_vouches_for_nothing(
    bucket: Bucket, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(**arguments: Any) -> dict[str, str]:
        return {"ETag": '"encrypted"'}

    monkeypatch.setattr(bucket.body_client, "put_object", put)
    with pytest.raises(StoreError) as caught:
        upload(bucket, {"small": files["small"]})
    assert caught.value.code == "store-unverified"


@pytest.mark.parametrize("range_bytes", [1 << 20, 64 << 20], ids=["ranges", "whole"])
def test_back_as_it_went(bucket: Bucket, files: dict[str, Path], tmp_path: Path, range_bytes: int) -> None:
    stored = upload(bucket, files)
    (tmp_path / "back").mkdir()
    wanted = [
        Wanted(f"stored/{name}", tmp_path / "back" / name, file.size, file.sha256, file.etag)
        for name, file in stored.items()
    ]
    counts: list[int] = []
    download_files(bucket, wanted, counts.append, range_bytes=range_bytes)
    assert sum(counts) == sum(file.size for file in stored.values())
    for name, path in files.items():
        assert (tmp_path / "back" / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("range_bytes", [1 << 20, 64 << 20], ids=["ranges", "whole"])
def test_other_bytes_than_were_wanted(bucket: Bucket, files: dict[str, Path], tmp_path: Path, range_bytes: int) -> None:
    file = upload(bucket, files)["model.bin"]
    for number, (sha256, etag) in enumerate([("0" * 64, file.etag), (file.sha256, "0" * 32)]):
        wanted = Wanted("stored/model.bin", tmp_path / f"back{number}", file.size, sha256, etag)
        with pytest.raises(ArtifactDamaged) as caught:
            download_files(bucket, [wanted], lambda count: None, range_bytes=range_bytes)
        assert caught.value.code == "artifact-damaged" and "'stored/model.bin'" in caught.value.message
