"""Models of NGC against a server that speaks its interface, and against NVIDIA's own client at the same server."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import EnginehouseError, SourceError, SourceUnavailable
from infra.s3.own_certificate import write
from tasks.models.source import Source
from tasks.sources import download
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import PinnedFile, ResolvedSource, SnapshotFile
from tests.own_environment import python_with
from tests.tasks.sources.ngc_server import KEY, OLD_KEY, TOKEN, Ngc

NGCSDK = "ngcsdk==4.37.0"


@pytest.fixture
def ngc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ngc]:
    """A registry of its own for each test, and a key for it."""
    with Ngc() as running:
        use(running, monkeypatch)
        monkeypatch.setattr(download, "PAUSE_S", 0.01)
        yield running


def use(ngc: Ngc, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NGC_CLI_API_KEY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NGC_API_KEY", KEY)
    monkeypatch.setenv("NGC_CLI_API_URL", ngc.url)
    monkeypatch.setenv("NGC_CLI_AUTH_URL", ngc.url)


@pytest.fixture
def files(safetensors: Callable[..., bytes]) -> dict[str, bytes]:
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "model.safetensors": safetensors(7, 70_000),
        "tokenizer/tokenizer.json": b"{}",
    }


def ignore(_done: int, _total: int) -> None:
    pass


def look(uri: str = "ngc://nvidia/nemo/tiny@1.0") -> ResolvedSource:
    return resolve(Source(uri=uri))


def take(resolved: ResolvedSource, folder: Path) -> tuple[SnapshotFile, ...]:
    return fetch(resolved, folder, ignore)


def refused(uri: str = "ngc://nvidia/nemo/tiny@1.0") -> EnginehouseError:
    with pytest.raises((SourceError, SourceUnavailable)) as caught:
        look(uri)
    assert caught.value.hint and KEY not in str(caught.value) and "signed-" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("model", ["nvidia/nemo/tiny", "nvidia/tiny"])
@pytest.mark.parametrize("key", [KEY, OLD_KEY, ""])
def test_a_version_is_pinned_and_its_files_are_fetched(
    ngc: Ngc, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, key: str
) -> None:
    monkeypatch.setenv("NGC_API_KEY", key)
    ngc.upload(model, "1.0", files, public=not key)
    resolved = look(f"ngc://{model}@1.0")
    assert not ngc.downloads()
    org, *team, name = model.split("/")
    about = {"scheme": "ngc", "org": org, "team": "".join(team), "model": name, "version": "1.0"}
    assert {key: resolved.pin[key] for key in about} == about
    assert resolved.files == tuple(
        PinnedFile(name, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}") for name, data in files.items()
    )
    fetched = take(resolved, tmp_path)
    assert {file.path: (tmp_path / file.path).read_bytes() for file in fetched} == files
    bearer = {KEY: f"Bearer {KEY}", OLD_KEY: f"Bearer {TOKEN}", "": ""}[key]
    asked = [request for request in ngc.requests if not request.path.startswith(("/storage/", "/token"))]
    assert {request.authorization for request in asked} == {bearer}
    assert len(ngc.downloads()) == len(files) and not any(request.authorization for request in ngc.downloads())


def test_latest_becomes_a_version_and_stays_it(ngc: Ngc, files: dict[str, bytes], tmp_path: Path) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    resolved = look("ngc://nvidia/nemo/tiny@latest")
    ngc.upload("nvidia/nemo/tiny", "2.0", {**files, "config.json": b"{}"})
    assert resolved.pin == look("ngc://nvidia/nemo/tiny@1.0").pin
    take(resolved, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == files["config.json"]
    assert look("ngc://nvidia/nemo/tiny@latest").pin["version"] == "2.0"


def test_files_come_in_pages_and_only_what_is_wanted_is_asked_for(ngc: Ngc, tmp_path: Path) -> None:
    ngc.page_size = 3
    ngc.upload("nvidia/tiny", "1", {f"part-{number}.json": b"{}" for number in range(10)} | {"a.safetensors": b""})
    resolved = resolve(Source(uri="ngc://nvidia/tiny@1", include=("part-*.json",)))
    assert len(resolved.files) == 10
    assert len(take(resolved, tmp_path)) == len(ngc.downloads()) == 10


def test_a_transfer_that_breaks_off_goes_on_where_it_was(ngc: Ngc, files: dict[str, bytes], tmp_path: Path) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", {"model.safetensors": files["model.safetensors"]})
    resolved = look()
    ngc.truncated, ngc.expired = 3, 1
    (fetched,) = take(resolved, tmp_path)
    assert (tmp_path / fetched.path).read_bytes() == files["model.safetensors"]
    ranges = [request.range for request in ngc.downloads()]
    assert ranges[:2] == [None, None] and all(each and each.startswith("bytes=") for each in ranges[2:])
    assert len({request.path for request in ngc.downloads()}) == len(ranges)  # each try asks for an address of its own


def test_a_transfer_that_never_ends_is_given_up(ngc: Ngc, files: dict[str, bytes], tmp_path: Path) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    resolved = look()
    ngc.expired = 99
    with pytest.raises(SourceUnavailable):
        take(resolved, tmp_path)
    assert len(ngc.downloads()) == 5
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".part"]


def test_a_storage_without_ranges_gives_the_same(ngc: Ngc, files: dict[str, bytes], tmp_path: Path) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    resolved = look()
    ngc.truncated, ngc.ignores_range = 2, True
    assert {file.path: (tmp_path / file.path).read_bytes() for file in take(resolved, tmp_path)} == files


def test_other_bytes_than_pinned_are_not_kept(ngc: Ngc, files: dict[str, bytes], tmp_path: Path) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    resolved = look()
    ngc.corrupted.add("model.safetensors")
    with pytest.raises(SourceError) as caught:
        take(resolved, tmp_path)
    assert caught.value.code == "source-changed" and not (tmp_path / "model.safetensors").exists()
    ngc.corrupted.clear()
    ngc.models["nvidia/nemo/tiny"].versions["1.0"]["model.safetensors"] += b"more"
    with pytest.raises(SourceUnavailable):
        take(resolved, tmp_path)


def test_without_a_digest_the_version_and_the_size_pin_a_file(
    ngc: Ngc, files: dict[str, bytes], tmp_path: Path
) -> None:
    ngc.without_digest.add("config.json")
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    ngc.upload("nvidia/nemo/tiny", "1.1", files)
    resolved = look()
    assert resolved.files[0].digest == "ngc-version:1.0" and resolved.pin != look("ngc://nvidia/nemo/tiny@1.1").pin
    take(resolved, tmp_path)
    swapped = replace(resolved, files=(replace(resolved.files[0], digest="sha256:" + "0" * 64),))
    with pytest.raises(SourceError):
        take(swapped, tmp_path / "again")


def test_refusals_name_their_cause(
    ngc: Ngc, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    assert refused("ngc://nvidia/nemo/other@1.0").code == "source-missing"
    assert refused("ngc://nvidia/nemo/tiny@9").code == "source-missing"
    ngc.status["1.0"] = "UPLOAD_PENDING"
    assert refused().code == "source-revision"
    ngc.status.clear()
    ngc.models["nvidia/nemo/tiny"].latest = ""
    assert refused("ngc://nvidia/nemo/tiny@latest").code == "source-revision"
    ngc.models["nvidia/nemo/tiny"].terms = True
    assert refused().code == "source-gated"
    ngc.models["nvidia/nemo/tiny"].terms = False
    ngc.unavailable = 1
    assert refused().retryable
    monkeypatch.setenv("NGC_API_KEY", "nvapi-of-somebody-else")
    assert refused().code == "source-gated"
    monkeypatch.setenv("NGC_API_KEY", "an-old-key-that-is-wrong")
    assert refused().code == "source-gated"
    monkeypatch.setenv("NGC_API_KEY", "")
    error = refused()
    assert error.code == "source-missing" and "guest" in error.message
    monkeypatch.setenv("NGC_CLI_API_URL", "http://127.0.0.1:1")
    assert refused().retryable
    assert KEY not in caplog.text and "signed-" not in caplog.text


def test_a_key_goes_to_no_other_server(ngc: Ngc, files: dict[str, bytes]) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", files)
    with Ngc() as other:
        other.upload("nvidia/nemo/tiny", "1.0", files)
        ngc.moved_to = other.url
        assert refused().code == "source-redirect"
        assert not other.requests


def test_an_answer_of_another_server_is_named(ngc: Ngc, monkeypatch: pytest.MonkeyPatch) -> None:
    ngc.upload("nvidia/nemo/tiny", "1.0", {})
    monkeypatch.setattr(ngc.models["nvidia/nemo/tiny"], "versions", {"1.0": {"a\nb": b""}})
    assert refused().code == "untrusted-name"
    ngc.status["1.0"] = None
    assert refused().code == "source-mirror"


OFFICIAL = """
import json, os, sys
from ngcsdk import Client
client = Client()
models = client.registry.model
listed = [[each.path, each.sizeInBytes, each.sha256_base64] for each in models.list_files("nvidia/nemo/tiny:1.0")]
done = models.download_version("nvidia/nemo/tiny:1.0", destination=sys.argv[1])
latest = models.info("nvidia/nemo/tiny").model.latestVersionIdStr
print(json.dumps({"latest": latest, "files": listed, "status": done["status"]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("key", [KEY, ""])
def test_nvidias_own_client_gets_the_same(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    python = python_with(NGCSDK)
    write(tmp_path)
    certificate = tmp_path / "own.crt"
    with Ngc(tmp_path) as ngc:  # NVIDIA's client insists on TLS
        use(ngc, monkeypatch)
        monkeypatch.setenv("NGC_API_KEY", key)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        ngc.page_size = 2
        ngc.upload("nvidia/nemo/tiny", "1.0", files, public=not key)
        (tmp_path / "theirs").mkdir()
        theirs = {"REQUESTS_CA_BUNDLE": str(certificate), **({"NGC_CLI_ORG": "nvidia"} if key else {})}
        ran = subprocess.run(
            [python, "-c", OFFICIAL, str(tmp_path / "theirs")],
            env={**os.environ, **theirs, "HOME": str(tmp_path), "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        said = json.loads(ran.stdout.strip().splitlines()[-1])
        asked = {request.path.partition("?")[0] for request in ngc.requests if "/storage/" not in request.path}
        ngc.requests.clear()
        resolved = look()
        take(resolved, tmp_path / "ours")
        assert look("ngc://nvidia/nemo/tiny@latest").pin["version"] == said["latest"] == "1.0"
        ours = {request.path.partition("?")[0] for request in ngc.requests if "/storage/" not in request.path}
        assert ours <= asked
    assert said["status"] == "Completed" and len(said["files"]) == len(files)
    (folder,) = (tmp_path / "theirs").iterdir()
    for name, data in files.items():
        assert (folder / name).read_bytes() == (tmp_path / "ours" / name).read_bytes() == data
