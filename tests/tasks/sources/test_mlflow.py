"""Models of MLflow against a server that answers as the tests want. The real one is asked where its webhooks are."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from infra.errors import EnginehouseError, SettingsError, SourceError, SourceUnavailable
from tasks.models.source import Source
from tasks.sources import download
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import Access, ResolvedSource
from tests.tasks.sources.loopback import Loopback

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOGGED = "m-0123456789abcdef0123456789abcdef"
PLACE = f"mlflow-artifacts:/1/models/{LOGGED}/artifacts"


class Registry(Loopback):
    """As much of a tracking server as a source asks for, with faults. It is also its storage."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}  # by path and query
        self.files: dict[str, bytes] = {}  # by path in the storage
        self.credentials = ""  # the Authorization that it wants
        self.truncated = 0
        self.requests: list[tuple[str, str]] = []

        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                answer(self)

        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts, given = urlsplit(handler.path), handler.headers.get("Authorization", "")
        self.requests.append((handler.path, given))
        path = unquote(parts.path)
        stored = path.removeprefix("/api/2.0/mlflow-artifacts/artifacts/")
        known = f"{path.removeprefix('/api/2.0/mlflow/')}?{parts.query}".removesuffix("?")
        if given != self.credentials:
            status, body = 401, b""
        elif path == "/api/2.0/mlflow-artifacts/artifacts":
            status, body = 200, json.dumps(self._list(parse_qs(parts.query)["path"][0])).encode()
        elif stored in self.files:
            status, body = 200, self.files[stored]
        elif known in self.answers:
            status, body = 200, json.dumps(self.answers[known]).encode()
        else:
            status, body = 404, b"{}"
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        cut = self.truncated > 0 and stored in self.files
        self.truncated -= cut
        handler.send_response(206 if start else status)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start : start + (len(body) - start) // 2] if cut else body[start:])

    def _list(self, folder: str) -> dict[str, Any]:
        below = {name.removeprefix(f"{folder}/"): len(data) for name, data in self.files.items() if folder in name}
        files = [
            {"path": name, "is_dir": False, "file_size": str(size)} for name, size in below.items() if "/" not in name
        ]
        folders = dict.fromkeys(name.partition("/")[0] for name in below if "/" in name)
        return {"files": [*files, *({"path": name, "is_dir": True} for name in folders)]}

    def upload(self, files: dict[str, bytes], folder: str = PLACE) -> None:
        path = folder.removeprefix("mlflow-artifacts:/")
        self.files = {f"{path}/{name}": data for name, data in files.items()}

    def place(self, where: str, version: str = "7") -> None:
        """Where version 7 of `sql`, the champion, lies."""
        self.answers["registered-models/alias?name=sql&alias=champion"] = {"model_version": {"version": version}}
        self.answers[f"model-versions/get-download-uri?name=sql&version={version}"] = {"artifact_uri": where}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    with Registry() as running:
        yield running


@pytest.fixture
def logged(safetensors: Callable[..., bytes]) -> dict[str, bytes]:
    """What `mlflow.transformers.log_model` leaves."""
    return {
        "MLmodel": b"flavors:\n  transformers:\n    model_binary: model\n",
        "requirements.txt": b"transformers\n",
        "model/config.json": b"{}",
        "model/model.safetensors": safetensors(3, 50_000),
        "components/tokenizer/tokenizer.json": b"{}",
    }


def ignore(_done: int, _total: int) -> None:
    pass


def look(registry: Registry, uri: str, s3: S3Client | None = None, **source: Any) -> ResolvedSource:
    return resolve(Source.model_validate({"uri": uri, **source}), Access(s3=s3, mlflow=registry.url))


def take(registry: Registry, resolved: ResolvedSource, folder: Path, s3: S3Client | None = None) -> dict[str, bytes]:
    files = fetch(resolved, folder, ignore, Access(s3=s3, mlflow=registry.url))
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert found == sorted(
        {file.path for file in files} | {p.as_posix() for f in files for p in Path(f.path).parents} - {"."}
    )
    return {file.path: (folder / file.path).read_bytes() for file in files}


def as_one_folder(logged: dict[str, bytes]) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: data for name, data in logged.items() if "/" in name}


def refused(registry: Registry, uri: str = "models:/sql/7", code: str = "") -> EnginehouseError:
    with pytest.raises((SourceError, SourceUnavailable)) as caught:
        look(registry, uri)
    assert caught.value.hint
    assert not code or caught.value.code == code
    return caught.value


def test_an_alias_becomes_a_version_and_its_folders_one(
    registry: Registry, logged: dict[str, bytes], tmp_path: Path
) -> None:
    registry.upload(logged)
    registry.place(PLACE)
    resolved = look(registry, "models:/sql@champion")
    assert resolved.pin["address"] == "models:/sql/7" and resolved.pin == look(registry, "models:/sql/7").pin
    registry.answers[f"logged-models/{LOGGED}"] = {"model": {"info": {"artifact_uri": PLACE}}}
    for number, uri in enumerate(["models:/sql/7", f"models:/{LOGGED}", PLACE]):
        assert take(registry, look(registry, uri), tmp_path / str(number)) == as_one_folder(logged)
    registry.place(f"models:/{LOGGED}", "8")
    later = look(registry, "models:/sql@champion")
    assert later.pin["address"] == "models:/sql/8" and later.pin["place"] == PLACE
    narrow = look(registry, "models:/sql/7", include=["*.json"])
    assert sorted(take(registry, narrow, tmp_path / "narrow")) == ["config.json", "tokenizer.json"]
    inner = look(registry, "models:/sql/7/model")
    assert sorted(take(registry, inner, tmp_path / "inner")) == ["config.json", "model.safetensors"]


def test_other_folders_are_taken_as_they_are(
    registry: Registry, safetensors: Callable[..., bytes], tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "more/model.safetensors": safetensors()}
    registry.upload(files)
    registry.place(PLACE)
    assert take(registry, look(registry, "models:/sql/7"), tmp_path) == files
    registry.upload({"MLmodel": b"", "model/a.json": b"{}", "peft/a.json": b"{}", "model/m.safetensors": b""})
    assert refused(registry).code == "untrusted-name"


def test_objects_are_pinned_where_the_registry_says(
    registry: Registry, logged: dict[str, bytes], s3: S3Client, tmp_path: Path
) -> None:
    for name, data in logged.items():
        s3.put_object(Bucket="tests", Key=f"mlflow/{tmp_path.name}/{name}", Body=data)
    registry.place(f"s3://tests/mlflow/{tmp_path.name}")
    resolved = look(registry, "models:/sql@champion", s3)
    assert all(file.digest.startswith("etag:") for file in resolved.files)
    assert take(registry, resolved, tmp_path, s3) == as_one_folder(logged)


def test_credentials_are_where_mlflow_looks_for_them(
    registry: Registry, logged: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.upload(logged)
    registry.place(PLACE)
    registry.credentials = "Bearer only-on-loopback"
    refused(registry, code="source-gated")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "only-on-loopback")
    resolved = look(registry, "models:/sql/7")
    take(registry, resolved, tmp_path / "token")
    registry.credentials = "Basic " + base64.b64encode("wilma:geheim é".encode()).decode()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "wilma")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "geheim é")
    assert look(registry, "models:/sql/7").pin == resolved.pin
    assert "geheim" not in repr(resolved) and "only-on-loopback" not in repr(resolved)


def test_a_transfer_that_breaks_off_goes_on(registry: Registry, logged: dict[str, bytes], tmp_path: Path) -> None:
    registry.upload(logged)
    registry.place(PLACE)
    resolved = look(registry, "models:/sql/7")
    registry.truncated = 3
    assert take(registry, resolved, tmp_path) == as_one_folder(logged)
    registry.upload({**logged, "model/model.safetensors": logged["model/model.safetensors"] + b"more"})
    with pytest.raises(SourceUnavailable):
        take(registry, resolved, tmp_path / "other")


@pytest.mark.parametrize(
    "place", ["file:///etc", "/etc", "dbfs:/models", "gs://bucket/model", "s3://bucket", "models:/sql/7"]
)
def test_what_lies_elsewhere_is_named(registry: Registry, place: str) -> None:
    registry.place(place)
    assert refused(registry, code="source-place").message.count("models:/sql/7") >= 1


def test_refusals_name_their_cause(registry: Registry) -> None:
    refused(registry, "models:/sql@champion", "source-missing")
    refused(registry, "mlflow-artifacts:/1/2", "source-entry")
    registry.place(PLACE, "latest")
    refused(registry, "models:/sql@champion", "source-mirror")
    with pytest.raises(SettingsError) as caught:
        resolve(Source(uri="models:/sql/7"), Access())
    assert "ENGINEHOUSE_MLFLOW" in caught.value.hint
