from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.version import Version

from infra.errors import SourceError, SourceUnavailable
from infra.package_index import Indexes, Published, configured, published
from tests.index_server import IndexServer, index_server


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with index_server() as server:
        yield server


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip's configuration of this test alone: a file."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nextra-index-url =\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    return file


@pytest.mark.parametrize("speaks_json", [True, False])
def test_versions_and_what_was_withdrawn(index: IndexServer, speaks_json: bool) -> None:
    index.speaks_json = speaks_json
    index.release("1.10.0rc1")
    index.release("1.2.1")
    index.release("1.9.0", yanked='breaks "everything" & more')
    index.release("1.8.0", yanked="")
    # One good file is enough for a version; other projects' and nobody's files are passed over.
    index.files["tensorrt-llm"] |= {
        "tensorrt_llm-1.2.1-cp310-cp310-linux_x86_64.whl": "no longer",
        "tensorrt_llm_tools-7.0.tar.gz": None,
        "tensorrt_llm-1.3.0-py3.7.egg": None,
        "index.json": None,
    }
    assert published("TensorRT_LLM", Indexes((index.url,))) == (
        Published(Version("1.2.1")),
        Published(Version("1.8.0"), ""),
        Published(Version("1.9.0"), 'breaks "everything" & more'),
        Published(Version("1.10.0rc1")),
    )
    assert index.requests == ["/simple/tensorrt-llm/"]


def test_several_indexes_are_one(index: IndexServer, tmp_path: Path) -> None:
    index.release("1.2.1", yanked="too early")
    folder = tmp_path / "with space" / "tensorrt-llm"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(
        "<a href='x'>tensorrt_llm-1.2.1.tar.gz</a> <a href='y'> tensorrt_llm-1.2.2.tar.gz\n</a>"
    )
    indexes = Indexes((index.url, folder.parent.as_uri(), (tmp_path / "nothing").as_uri()))
    assert published("tensorrt-llm", indexes) == (Published(Version("1.2.1")), Published(Version("1.2.2")))


def test_an_index_that_fails_is_not_an_index_without_news(index: IndexServer) -> None:
    index.release("1.2.1")
    with index_server() as other:
        other.broken = True
        indexes = Indexes((index.url, other.url.replace("//", "//me:secret@")))
        with pytest.raises(SourceUnavailable) as caught:
            published("tensorrt-llm", indexes)
    assert caught.value.code == "source-unavailable" and "500" in caught.value.message
    assert caught.value.retryable and "secret" not in str(caught.value)
    with pytest.raises(SourceUnavailable) as caught:
        published("tensorrt-llm", indexes)
    assert caught.value.code == "source-unavailable" and "500" not in caught.value.message
    assert caught.value.retryable and "secret" not in str(caught.value)


def test_no_index_has_it(index: IndexServer) -> None:
    with pytest.raises(SourceError) as caught:
        published("tensorrt-llm", Indexes((index.url,)))
    assert caught.value.code == "source-missing" and "tensorrt-llm" in caught.value.message


def test_pips_own_configuration_counts(pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip.write_text(
        "[global]\nindex-url = http://one/simple/\nextra-index-url =\n    http://two/simple\n    http://three/simple\n"
        "cert = /own/ca.pem\n[install]\nindex-url = http://only-install/simple\n"
    )
    assert configured(["http://four/simple", "http://two/simple"]) == Indexes(
        ("http://one/simple", "http://two/simple", "http://three/simple", "http://four/simple"), "/own/ca.pem"
    )
    pip.write_text(f"{pip.read_text()}[download]\nindex-url = http://download/simple\n")
    assert configured().urls[0] == "http://download/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "http://environment/simple")
    assert configured().urls[0] == "http://environment/simple"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert configured(["http://four/simple"]).urls == ("http://four/simple",)


def test_without_configuration_it_is_pips_default(pip: Path) -> None:
    (url,) = configured().urls
    assert url.startswith("https://") and url.endswith("/simple")
