"""The store against a real S3 server: nothing is lost, nothing torn is found, what is damaged is seen."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest

from infra.errors import ArtifactDamaged, PreconditionFailed, SettingsError, StoreUnavailable
from infra.s3.bucket import Bucket
from infra.s3.upload import upload_files
from tasks.store.artifact import Artifact, ArtifactRef, Producer, safe_path
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity

IDENTITY = Identity.of("build", 1, inputs={}, fields={"quantization": "q8_0"})
REF = ArtifactRef("engine", IDENTITY.digest)
PRODUCER = Producer(task="build", code="enginehouse test")


@pytest.fixture
def store(bucket: Bucket) -> ArtifactStore:
    return ArtifactStore(bucket)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    # Large enough to travel in several parts.
    (made / "model.gguf").write_bytes(os.urandom(9 << 20))
    (made / "deep" / "limits.json").write_text("{}")
    (made / "empty").touch()
    return made


def publish(store: ArtifactStore, folder: Path, replaces: str = "") -> Artifact:
    return store.publish(REF, IDENTITY, folder, inputs={}, producer=PRODUCER, replaces=replaces)


def test_comes_back_as_it_went(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    artifact = store.publish(
        REF,
        IDENTITY,
        folder,
        inputs={"checkpoint": REF},
        producer=PRODUCER,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (artifact.manifest.size, artifact.manifest.size)
    found = store.find(REF)
    assert found is not None and found == artifact
    assert Identity(found.manifest.identity).digest == REF.identity
    store.download(found, tmp_path / "back")
    for file in found.manifest.files:
        assert (tmp_path / "back" / file.path).read_bytes() == (folder / file.path).read_bytes()
        assert file.size == 0 or file.checksum.startswith("CRC64NVME:FULL_OBJECT:")
    assert store.read(found, "deep/limits.json") == b"{}"
    assert [path.name for path in tmp_path.iterdir()] == ["made", "back"] or not list(tmp_path.glob("*.partial"))


def test_the_first_of_two_counts_and_the_other_is_not_kept(store: ArtifactStore, folder: Path) -> None:
    results: list[Artifact] = []
    threads = [threading.Thread(target=lambda: results.append(publish(store, folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({artifact.manifest.attempt for artifact in results}) == 1
    attempts = {entry.key.split("/")[3] for entry in store.bucket.list(REF.folder)}
    assert attempts == {"manifest.json", results[0].manifest.attempt}


def test_a_missing_file_is_found_without_reading(store: ArtifactStore, folder: Path) -> None:
    artifact = publish(store, folder)
    store.bucket.delete(f"{REF.folder}{artifact.manifest.attempt}/model.gguf")
    assert store.look_up(REF).problem == "'model.gguf' is missing"
    with pytest.raises(ArtifactDamaged):
        store.need(REF)


def test_a_flipped_byte_is_found_without_reading_and_the_old_manifest_kept(
    store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    damaged = publish(store, folder)
    data = bytearray((folder / "model.gguf").read_bytes())
    data[12345] ^= 1
    store.bucket.put(f"{REF.folder}{damaged.manifest.attempt}/model.gguf", bytes(data))
    assert store.look_up(REF).problem == "'model.gguf' was altered"
    with pytest.raises(ArtifactDamaged):
        store.download(damaged, tmp_path / "back")
    assert not (tmp_path / "back").exists()

    mended = publish(store, folder)
    assert mended.manifest.attempt != damaged.manifest.attempt
    assert store.find(REF) == mended
    kept = [entry.key for entry in store.bucket.list(f"{REF.folder}damaged/")]
    record = store.bucket.get(kept[0])
    assert len(kept) == 1 and record is not None
    assert json.loads(record.body)["attempt"] == damaged.manifest.attempt


def test_an_intact_one_is_replaced_only_when_asked(store: ArtifactStore, folder: Path) -> None:
    first = publish(store, folder)
    assert publish(store, folder) == first
    again = publish(store, folder, first.manifest.attempt)
    assert again.manifest.attempt != first.manifest.attempt
    assert store.find(REF) == again
    assert again.manifest.digest == first.manifest.digest
    # One that was stopped since `first` does not replace what counts by now.
    assert publish(store, folder, first.manifest.attempt) == again == store.find(REF)


def test_a_torn_attempt_is_not_an_artifact(store: ArtifactStore, folder: Path) -> None:
    upload_files(store.bucket, f"{REF.folder}abc/", {"model.gguf": folder / "model.gguf"}, lambda count: None)
    assert store.find(REF) is None


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"schema_version": 1', "{}".encode("utf-16")], ids=["empty", "{}", "[]", "cut", "16"]
)
def test_an_unreadable_manifest_is_damage(store: ArtifactStore, folder: Path, body: bytes) -> None:
    publish(store, folder)
    store.bucket.put(REF.folder + "manifest.json", body)
    assert store.look_up(REF).problem.startswith("unreadable manifest")
    assert store.find(REF) is None
    assert publish(store, folder) == store.find(REF)


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b", "a\\b", "a//b", ".", "", "a\0b", "a/./b"])
def test_a_manifest_cannot_name_a_path_outside(store: ArtifactStore, folder: Path, path: str) -> None:
    with pytest.raises(ValueError):
        safe_path(path)
    artifact = publish(store, folder)
    document = json.loads(artifact.manifest.model_dump_json())
    document["files"][0]["path"] = path
    store.bucket.put(REF.folder + "manifest.json", json.dumps(document).encode())
    assert store.look_up(REF).problem.startswith("unreadable manifest")


def test_a_manifest_cannot_name_a_path_twice(store: ArtifactStore, folder: Path) -> None:
    artifact = publish(store, folder)
    document = json.loads(artifact.manifest.model_dump_json())
    document["files"].append(document["files"][0])
    store.bucket.put(REF.folder + "manifest.json", json.dumps(document).encode())
    assert store.look_up(REF).problem.startswith("unreadable manifest")


def test_links_in_a_folder_are_refused(store: ArtifactStore, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(ArtifactDamaged) as caught:
        publish(store, folder)
    assert caught.value.code == "artifact-damaged" and "'link'" in caught.value.message
    assert store.look_up(REF).problem == "not in the store"


def test_conditional_writes(bucket: Bucket) -> None:
    etag = bucket.create("key", b"1")
    with pytest.raises(PreconditionFailed):
        bucket.create("key", b"2")
    second = bucket.replace("key", b"3", etag)
    with pytest.raises(PreconditionFailed):
        bucket.replace("key", b"4", etag)
    record = bucket.get("key")
    assert record is not None and (record.body, record.etag) == (b"3", second)
    assert record.age < 60
    assert bucket.get("nothing") is None


def test_a_store_that_is_away_is_worth_a_retry(bucket: Bucket) -> None:
    away = dataclasses.replace(bucket, endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable) as caught:
        away.get("key")
    assert caught.value.retryable


@pytest.mark.parametrize("uri", ["", "bucket", "http://bucket/x", "s3://"])
def test_what_is_no_store(uri: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Bucket.at(uri)
    assert caught.value.code == "settings" and "s3://bucket" in caught.value.hint


def test_identities_differ_by_content_alone() -> None:
    one = Identity.of("build", 1, inputs={"a": IDENTITY}, fields={"x": 1, "y": [True, None, "é"]})
    same = Identity.of("build", 1, inputs={"a": IDENTITY}, fields={"y": [True, None, "é"], "x": 1})
    other = Identity.of("build", 2, inputs={"a": IDENTITY}, fields={"x": 1, "y": [True, None, "é"]})
    assert one.digest == same.digest != other.digest
    with pytest.raises(ValueError):
        _ = Identity({"x": float("nan")}).digest
