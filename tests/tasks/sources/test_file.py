from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from infra.errors import SourceError, UntrustedFile
from tasks.models.source import Source
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import ResolvedSource, SnapshotFile


def look(path: Path, **source: Any) -> ResolvedSource:
    return resolve(Source.model_validate({"uri": f"file://{path}", **source}))


def take(resolved: ResolvedSource, folder: Path) -> tuple[SnapshotFile, ...]:
    return fetch(resolved, folder, lambda done, total: None)


@pytest.fixture
def folder(tmp_path: Path, gguf: bytes) -> Path:
    folder = tmp_path / "origin"
    (folder / "extra").mkdir(parents=True)
    (folder / "model.gguf").write_bytes(gguf)
    (folder / "extra" / "notes.md").write_text("Nothing to see.")
    return folder


def test_a_folder_is_pinned_by_its_bytes_alone(folder: Path, gguf: bytes, tmp_path: Path) -> None:
    resolved = look(folder)
    notes = hashlib.sha256(b"Nothing to see.").hexdigest()
    assert resolved.pin == {
        "scheme": "file",
        "files": [
            {"path": "extra/notes.md", "size": 15, "digest": f"sha256:{notes}"},
            {"path": "model.gguf", "size": len(gguf), "digest": f"sha256:{hashlib.sha256(gguf).hexdigest()}"},
        ],
    }
    moved = folder.rename(tmp_path / "moved")
    assert look(moved).pin == resolved.pin


def test_a_folder_and_a_file_are_copied(folder: Path, gguf: bytes, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetched = fetch(look(folder), tmp_path / "snapshot", lambda done, total: seen.append((done, total)))
    assert [file.path for file in fetched] == ["extra/notes.md", "model.gguf"]
    assert seen[-1] == (len(gguf) + 15, len(gguf) + 15)
    (single,) = take(look(folder / "model.gguf"), tmp_path / "single")
    assert single == SnapshotFile("model.gguf", len(gguf), hashlib.sha256(gguf).hexdigest())
    assert [path.name for path in (tmp_path / "single").iterdir()] == ["model.gguf"]


def test_a_sha256_is_compared(folder: Path, gguf: bytes) -> None:
    assert look(folder / "model.gguf", sha256=hashlib.sha256(gguf).hexdigest()).files
    with pytest.raises(SourceError) as caught:
        look(folder / "model.gguf", sha256="0" * 64)
    assert caught.value.code == "source-hash"
    with pytest.raises(SourceError) as caught:
        look(folder, sha256="0" * 64)
    assert caught.value.code == "source-invalid"


def test_missing_and_empty_sources_have_codes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        look(tmp_path / "absent")
    assert caught.value.code == "source-missing"
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        look(tmp_path / "empty")
    assert caught.value.code == "source-entry"
    with pytest.raises(SourceError) as caught:
        look(folder, include=["*.json"])
    assert caught.value.code == "source-entry" and "*.json" in caught.value.message


@pytest.mark.parametrize("kind", ["file", "folder", "outside", "dangling", "fifo"])
def test_links_and_special_files_are_refused(folder: Path, kind: str) -> None:
    match kind:
        case "file":
            (folder / "again.gguf").symlink_to("model.gguf")
        case "folder":
            (folder / "again").symlink_to("extra")
        case "outside":
            (folder / "secret.txt").symlink_to("/etc/hostname")
        case "dangling":
            (folder / "nothing.txt").symlink_to("nowhere")
        case _:
            os.mkfifo(folder / "pipe.txt")
    with pytest.raises(UntrustedFile) as caught:
        look(folder)
    assert caught.value.code == "untrusted-link"


def test_the_source_itself_may_not_be_a_link(folder: Path, tmp_path: Path) -> None:
    for name, target in (("folder", folder), ("model.gguf", folder / "model.gguf")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(UntrustedFile) as caught:
            look(tmp_path / name)
        assert caught.value.code == "untrusted-link"


@pytest.mark.parametrize("change", ["bytes", "size", "gone", "link"])
def test_a_file_that_changed_since_it_was_resolved(folder: Path, gguf: bytes, tmp_path: Path, change: str) -> None:
    resolved = look(folder)
    path = folder / "model.gguf"
    match change:
        case "bytes":
            path.write_bytes(gguf[:-1] + b"!")
        case "size":
            path.write_bytes(gguf + b"!")
        case "gone":
            path.unlink()
        case _:
            path.rename(tmp_path / "model.gguf")
            path.symlink_to(tmp_path / "model.gguf")
    with pytest.raises(SourceError) as caught:
        take(resolved, tmp_path / "snapshot")
    assert caught.value.code == "source-changed"
    assert not (tmp_path / "snapshot" / "model.gguf").exists()


def test_a_link_in_the_destination_is_not_written_through(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "snapshot").mkdir()
    for name in ("model.gguf", "model.gguf.part"):
        (tmp_path / "snapshot" / name).symlink_to(victim)
    take(look(folder), tmp_path / "snapshot")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "snapshot" / "model.gguf").is_symlink()


def test_content_is_checked_on_the_way(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UntrustedFile) as caught:
        take(look(folder), tmp_path / "snapshot")
    assert caught.value.code == "untrusted-content"
    assert not (tmp_path / "snapshot" / "model.safetensors").exists()


def test_one_part_of_a_split_gguf_brings_its_siblings(tmp_path: Path, gguf: bytes) -> None:
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for name in (*names, "other.gguf"):
        (tmp_path / name).write_bytes(gguf)
    assert [file.path for file in look(tmp_path / names[0]).files] == names
    with pytest.raises(SourceError) as caught:
        look(tmp_path / names[0], sha256=hashlib.sha256(gguf).hexdigest())
    assert "more than one file" in caught.value.message
    (tmp_path / names[1]).unlink()
    with pytest.raises(SourceError) as caught:
        look(tmp_path / names[0])
    assert caught.value.code == "source-entry" and names[1] in caught.value.message
