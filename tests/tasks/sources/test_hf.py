from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.errors import SourceError, SourceUnavailable, UntrustedFile
from tasks.models.source import Source
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import Access, ResolvedSource

if TYPE_CHECKING:
    from tests.tasks.sources.hub_server import Hub

CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'


@pytest.fixture
def weights(safetensors: Callable[..., bytes]) -> bytes:
    return safetensors(elements=300_000)


@pytest.fixture
def files(weights: bytes) -> dict[str, bytes]:
    return {
        "model.safetensors": weights,
        "config.json": CONFIG,
        "original/params.json": b"{}",
        "LICENSE": b"Do good.",
        ".gitattributes": b"*.safetensors filter=lfs",
        "curves.png": b"\x89PNG",
    }


def pull(hub: Hub, **source: Any) -> ResolvedSource:
    document = {"uri": "hf://org/model@main", **source}
    return resolve(Source.model_validate(document), Access(hub_endpoint=hub.url))


def take(hub: Hub, resolved: ResolvedSource, folder: Path, seen: list[tuple[int, int]] | None = None) -> Any:
    def progress(done: int, total: int) -> None:
        if seen is not None:
            seen.append((done, total))

    return fetch(resolved, folder, progress, Access(hub_endpoint=hub.url))


def test_a_branch_is_pinned_to_its_commit_and_every_files_digest(
    hub: Hub, files: dict[str, bytes], weights: bytes
) -> None:
    commit = hub.push("org/model", files)
    resolved = pull(hub)
    assert resolved.pin == {
        "scheme": "hf",
        "repository": "org/model",
        "commit": commit,
        "files": [
            {
                "path": "LICENSE",
                "size": 8,
                "digest": f"git-blob-sha1:{hashlib.sha1(b'blob 8' + bytes(1) + b'Do good.').hexdigest()}",
            },
            {
                "path": "config.json",
                "size": len(CONFIG),
                "digest": "git-blob-sha1:" + hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest(),
            },
            {
                "path": "model.safetensors",
                "size": len(weights),
                "digest": f"sha256:{hashlib.sha256(weights).hexdigest()}",
            },
            {
                "path": "original/params.json",
                "size": 2,
                "digest": f"git-blob-sha1:{hashlib.sha1(b'blob 2' + bytes(1) + b'{}').hexdigest()}",
            },
        ],
    }
    assert json.loads(json.dumps(resolved.pin)) == resolved.pin
    assert hub.downloads() == []
    assert pull(hub, uri=f"hf://org/model@{commit}").pin == resolved.pin


def test_a_snapshot_holds_the_files_and_nothing_else(
    hub: Hub, files: dict[str, bytes], weights: bytes, tmp_path: Path
) -> None:
    hub.push("org/model", files)
    seen: list[tuple[int, int]] = []
    fetched = take(hub, pull(hub), tmp_path / "snapshot", seen)
    assert [file.path for file in fetched] == [
        "LICENSE",
        "config.json",
        "model.safetensors",
        "original/params.json",
    ]
    for file in fetched:
        data = (tmp_path / "snapshot" / file.path).read_bytes()
        assert data == files[file.path]
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    left = [path.relative_to(tmp_path / "snapshot") for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.as_posix() for path in left) == [file.path for file in fetched]
    total = sum(file.size for file in fetched)
    assert seen[-1] == (total, total)
    assert all(before[0] <= after[0] for before, after in pairwise(seen))


def test_the_commit_is_fetched_although_the_branch_moved(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push("org/model", files)
    resolved = pull(hub)
    hub.push("org/model", {**files, "config.json": b"{}"})
    take(hub, resolved, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == CONFIG
    assert pull(hub).pin["commit"] != resolved.pin["commit"]


def test_what_is_left_out_is_not_pinned(hub: Hub, weights: bytes, tmp_path: Path) -> None:
    needed = {"config.json": CONFIG, "model.safetensors": weights}
    hub.push("org/model", {**needed, ".eval_results/mmlu.yaml": b"score: 1", "onnx/model.onnx": b"\x08"})
    resolved = pull(hub)
    commit = resolved.pin["commit"]
    hub.push("org/model", {**needed, ".gitattributes": b""})
    assert {**pull(hub).pin, "commit": commit} == resolved.pin
    assert [file.path for file in take(hub, resolved, tmp_path)] == ["config.json", "model.safetensors"]
    assert not (tmp_path / "onnx").exists()


def test_include_narrows(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push("org/model", {**files, "modeling.py": b"import os", "original/consolidated.00.pth": b"\x80\x02."})
    resolved = pull(hub, include=["*.safetensors", "*.json"])
    assert [file.path for file in resolved.files] == ["config.json", "model.safetensors"]


def test_a_folder_of_a_repository_is_a_source_of_its_own(
    hub: Hub, files: dict[str, bytes], safetensors: Callable[..., bytes], tmp_path: Path
) -> None:
    adapters = {f"lora/{name}/{file}": data for name in ("sql", "chat") for file, data in files.items()}
    adapters["lora/sql/more/model.safetensors"] = safetensors(2)
    commit = hub.push("org/model", {**files, **adapters})
    resolved = pull(hub, uri="hf://org/model@main/lora/sql")
    assert (resolved.pin["commit"], resolved.pin["folder"]) == (commit, "lora/sql")
    hub.push("org/alone", {**files, "more/model.safetensors": safetensors(2)})
    alone = pull(hub, uri="hf://org/alone@main")
    assert resolved.files == alone.files and len(resolved.files) > 3
    pins = [pull(hub, uri=f"hf://org/model@{at}").pin for at in (f"{commit}/lora/sql", "main/lora/chat", "main")]
    assert pins[0] == resolved.pin and pins[1] != resolved.pin and "folder" not in pins[2]
    for _ in range(2):
        taken = take(hub, resolved, tmp_path / "snapshot")
        found = {path.relative_to(tmp_path / "snapshot").as_posix() for path in (tmp_path / "snapshot").rglob("*.*")}
        assert found == {file.path for file in taken if "." in file.path} and len(taken) == len(resolved.files)
    # A branch whose name has slashes is read as one.
    branch = hub.push("org/model", {**files, "sql/model.safetensors": b""}, reference="team/sql")
    assert pull(hub, uri="hf://org/model@team/sql").pin["commit"] == branch
    for uri, code in (("main/nothing", "source-entry"), ("nowhere/sql", "source-revision")):
        with pytest.raises(SourceError) as caught:
            pull(hub, uri=f"hf://org/model@{uri}")
        assert caught.value.code == code


def test_gated_missing_and_wrong_revision_have_codes_before_any_download(hub: Hub, files: dict[str, bytes]) -> None:
    commit = hub.push("org/gated", files, gated=True)
    hub.push("org/model", files)
    codes = {
        "hf://org/gated@main": "source-gated",
        f"hf://org/gated@{commit}": "source-gated",
        "hf://org/absent@main": "source-missing",
        "hf://org/model@v9": "source-revision",
        f"hf://org/model@{'0' * 40}": "source-revision",
    }
    for uri, code in codes.items():
        with pytest.raises(SourceError) as caught:
            pull(hub, uri=uri)
        assert (uri, caught.value.code) == (uri, code)
        assert caught.value.hint
        assert not caught.value.retryable
    assert hub.downloads() == []


def test_a_token_opens_a_gated_repository_and_a_wrong_one_does_not(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push("org/model", files, gated=True)
    hub.tokens.add("hf_sesame")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError) as caught:
        pull(hub)
    assert caught.value.code == "source-gated"
    assert "hf_wrong" not in str(caught.value) + caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    resolved = pull(hub)
    assert "hf_sesame" not in json.dumps(resolved.pin)
    assert resolved.licence == "llama3" and resolved.gated
    assert len(take(hub, resolved, tmp_path)) == 4


def test_files_that_are_asked_for_and_missing(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push("org/model", files)
    with pytest.raises(SourceError) as caught:
        pull(hub, include=["*.json", "*.gguf"])
    assert caught.value.code == "source-entry"
    assert "*.gguf" in caught.value.message and "model.safetensors" in caught.value.hint
    resolved = pull(hub)
    hub.repositories["org/model"].absent.update(files)
    for failing in (lambda: pull(hub), lambda: take(hub, resolved, tmp_path)):
        with pytest.raises(SourceError) as caught:
            failing()
        assert caught.value.code == "source-entry"


def test_a_hub_that_does_not_answer_is_worth_another_try(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push("org/model", files)
    hub.unavailable = 1
    with pytest.raises(SourceUnavailable) as caught:
        pull(hub)
    assert caught.value.retryable
    assert len(pull(hub).files) == 4
    with pytest.raises(SourceUnavailable):
        resolve(Source(uri="hf://org/model@main"), Access(hub_endpoint="http://127.0.0.1:9"))


def test_a_second_try_keeps_what_the_first_one_finished(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push("org/model", files)
    resolved = pull(hub)
    # The client itself retries what it asks about a file, and not the file: let the download fail.
    hub.repositories["org/model"].absent.add("original/params.json")
    with pytest.raises(SourceError):
        take(hub, resolved, tmp_path)
    first = len(hub.downloads())
    hub.repositories["org/model"].absent.clear()
    take(hub, resolved, tmp_path)
    assert [request.path.rpartition("/")[2] for request in hub.downloads()[first:]] == ["params.json"]


def test_a_broken_transfer_is_resumed(hub: Hub, safetensors: Callable[..., bytes], tmp_path: Path) -> None:
    weights = safetensors(elements=24 * 2**20)  # the client keeps whole pieces of 10 MB
    hub.push("org/model", {"model.safetensors": weights})
    resolved = pull(hub)
    hub.truncated = 1
    (file,) = take(hub, resolved, tmp_path)
    assert file.sha256 == hashlib.sha256(weights).hexdigest()
    first, second = hub.downloads()
    assert first.range is None
    assert second.range is not None and int(second.range.removeprefix("bytes=").rstrip("-")) > 0


@pytest.mark.parametrize(
    "absent", [("size", "blobId", "lfs"), ("blobId", "lfs"), ("size", "blobId", "lfs", "sha"), ("size",), ("sha",)]
)
def test_a_mirror_that_says_little_of_its_files_gives_the_same_snapshot(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, absent: tuple[str, ...]
) -> None:
    commit = hub.push("org/model", files)
    whole = pull(hub)
    hub.leaves_out = {*absent}
    resolved = pull(hub)
    assert resolved == whole and resolved.pin["commit"] == commit
    assert hub.downloads() == []
    fetched = take(hub, resolved, tmp_path)
    assert {file.path: (tmp_path / file.path).read_bytes() for file in fetched} == {
        file.path: files[file.path] for file in whole.files
    }


@pytest.mark.parametrize(
    ("absent", "page"),
    [
        ({"X-Repo-Commit"}, None),
        ({"ETag", "X-Linked-ETag"}, None),
        ({"siblings"}, None),
        ({"sha", "X-Repo-Commit"}, None),
        (set[str](), b"<html>Sign in</html>"),
        (set[str](), b"[]"),
        (set[str](), b'{"siblings": [{"rfilename": "a.gguf", "lfs": {"size": 1}}]}'),
        (set[str](), b'{"sha": "main", "siblings": [{"rfilename": "config.json"}]}'),
    ],
)
def test_a_mirror_that_says_too_little_is_named(
    hub: Hub, files: dict[str, bytes], absent: set[str], page: bytes | None
) -> None:
    hub.push("org/model", files)
    hub.leaves_out, hub.page = absent, page
    address = hub.url.replace("http://", "http://someone:sesame@")
    with pytest.raises(SourceError) as caught:
        resolve(Source(uri="hf://org/model@main"), Access(hub_endpoint=address))
    assert caught.value.code == "source-mirror" and not caught.value.retryable
    assert hub.url.removeprefix("http://") in caught.value.message and "HF_ENDPOINT" in caught.value.hint
    assert "sesame" not in caught.value.message


def test_a_mirror_whose_etags_are_no_digests(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push("org/model", files)
    hub.etag = "5f3a-62c1"
    assert len(pull(hub).files) == 4  # the list has the digests
    hub.leaves_out = {"size", "blobId", "lfs"}
    with pytest.raises(SourceError) as caught:
        pull(hub)
    assert caught.value.code == "source-mirror" and "5f3a-62c1" in caught.value.message


def test_a_mirror_that_does_not_even_say_sizes(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push("org/model", files)
    whole = pull(hub)
    hub.leaves_out = {"size", "blobId", "lfs", "Content-Length", "X-Linked-Size"}
    resolved = pull(hub)
    assert [file.size for file in resolved.files] == [None] * 4
    assert [file.digest for file in resolved.files] == [file.digest for file in whole.files]
    assert [file.size for file in take(hub, resolved, tmp_path)] == [file.size for file in whole.files]


def test_a_mirror_that_says_less_when_it_is_asked_to_deliver(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push("org/model", files)
    resolved = pull(hub)
    hub.leaves_out = {"X-Repo-Commit"}
    with pytest.raises(SourceError) as caught:
        take(hub, resolved, tmp_path)
    assert caught.value.code == "source-mirror" and not caught.value.retryable


def test_a_mirror_that_gives_no_codes(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push("org/model", files)
    hub.leaves_out = {"X-Error-Code", "X-Error-Message"}
    with pytest.raises(SourceError) as caught:
        pull(hub, uri="hf://org/model@v9")
    assert caught.value.code == "source-missing" and not caught.value.retryable


def test_a_name_that_no_hub_has(hub: Hub) -> None:
    with pytest.raises(SourceError) as caught:
        pull(hub, uri="hf://org/a--b@main")
    assert caught.value.code == "source-invalid"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_found_and_not_left_behind(
    hub: Hub, files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    hub.push("org/model", files)
    resolved = pull(hub)
    hub.corrupted.add(name)
    with pytest.raises(SourceError) as caught:
        take(hub, resolved, tmp_path)
    assert caught.value.code == "source-changed" and name in caught.value.message
    assert not (tmp_path / name).exists()
    hub.corrupted.clear()
    take(hub, resolved, tmp_path)
    assert (tmp_path / name).read_bytes() == files[name]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("modeling_llama.py", "untrusted-python"),
        ("pytorch_model.bin", "untrusted-pickle"),
        ("original/consolidated.00.pth", "untrusted-pickle"),
        ("run.sh", "untrusted-type"),
        ("../escape.json", "untrusted-name"),
        ("Config.json", "untrusted-name"),
    ],
)
def test_a_hostile_repository_is_refused_before_any_download(
    hub: Hub, files: dict[str, bytes], name: str, code: str
) -> None:
    hub.push("org/model", {**files, name: b"x"})
    with pytest.raises(UntrustedFile) as caught:
        pull(hub)
    assert caught.value.code == code
    assert hub.downloads() == []


def test_an_auto_map_is_refused_unless_a_pinned_revision_is_trusted(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    config = b'{"auto_map": {"AutoModel": "modeling.Model"}}'
    commit = hub.push("org/model", {**files, "config.json": config})
    with pytest.raises(UntrustedFile) as caught:
        take(hub, pull(hub), tmp_path)
    assert caught.value.code == "untrusted-python"
    assert not (tmp_path / "config.json").exists()
    trusted = pull(hub, uri=f"hf://org/model@{commit}", trust=["python"])
    take(hub, trusted, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == config
    # A model that loses its trust must not be served a snapshot taken with it.
    assert trusted.pin["trust"] == ["python"]
    assert trusted.pin != pull(hub, uri=f"hf://org/model@{commit}").pin
