"""Models of an MLflow 3 server: `models:/name/version`, `models:/name@alias`, `models:/m-…`, `mlflow-artifacts:/path`.

Its registry says where a model's files lie: below `s3://`, which is read as any such source, or in the storage behind
the server, which gives them out itself. A setting names the server; its credentials are where MLflow's own client looks
for them (`MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`).

`mlflow.transformers` logs a model in folders: their files are taken as if they were in one. Source of all this: MLflow
3.17, `protos/service.proto`, `model_registry.proto`, `mlflow_artifacts.proto`, and `transformers/model_io.py`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import quote

from pydantic import BaseModel, Field, JsonValue

from infra.errors import SettingsError, SourceError
from infra.progress import ByteCounter, Progress
from tasks.models.source import Source
from tasks.models.source_uri import ArtifactsUri, ModelsUri, S3Uri, parse_source
from tasks.sources import s3
from tasks.sources.download import resuming, save
from tasks.sources.names import check_names, select
from tasks.sources.resolved import Access, PinnedFile, ResolvedSource, SnapshotFile, pinned
from tasks.sources.rest import HttpRefused, get_json, not_understood, read_as, read_from

_MARK = "MLmodel"
_FOLDERS = ("model/", "components/tokenizer/", "peft/")
"""Where `mlflow.transformers` puts weights, tokenizer and adapter of a model, beside _MARK."""
_DEEPEST = 16
_MOST_FILES = 100_000


def resolve(source: Source, uri: ModelsUri | ArtifactsUri, access: Access) -> ResolvedSource:
    """Pin the version that an alias means by now, where it lies, and the files there.

    Files below `s3://` are pinned as objects are. Those that the server gives out are pinned by their sizes and by the
    version, which does not change once it is registered: it has no digests. Raises SourceError `source-place` for a
    model that lies elsewhere.
    """
    server = _Server.of(access)
    address = server.pinned(uri) if isinstance(uri, ModelsUri) else uri
    place = server.place(address)
    there: dict[str, JsonValue] = {}
    if isinstance(place, S3Uri):
        found = s3.resolve(source.model_copy(update={"uri": str(place)}), place, access, choose=_chosen)
        there = {name: value for name, value in found.pin.items() if name not in ("files", "trust")}
        files = found.files
    else:
        sizes = dict(server.files(place.path))
        files = tuple(PinnedFile(name, sizes[name], f"mlflow:{place}") for name in _chosen(source, list(sizes)))
    if _in_folders(file.path for file in files):
        check_names(_short(file.path) for file in files)
    return pinned(source, {"scheme": "mlflow", "address": str(address), "place": str(place), "there": there}, files)


def fetch(resolved: ResolvedSource, destination: Path, progress: Progress, access: Access) -> tuple[SnapshotFile, ...]:
    """Download the pinned files. A transfer from the server that breaks off goes on where it was."""
    place = parse_source(str(resolved.pin["place"]))
    if isinstance(place, S3Uri):
        there = cast(Mapping[str, JsonValue], resolved.pin["there"])
        fetched = s3.fetch(replace(resolved, uri=str(place), pin=there), place, destination, progress, access)
    else:
        assert isinstance(place, ArtifactsUri)
        server, advance = _Server.of(access), ByteCounter(progress, resolved.known_bytes)
        fetched = tuple(server.fetch(place.path, file, destination, advance) for file in resolved.files)
    return _as_one_folder(destination, fetched) if _in_folders(file.path for file in fetched) else fetched


def snapshot_files(resolved: ResolvedSource) -> Mapping[str, PinnedFile]:
    """The files by their paths in the snapshot, which is one folder."""
    short = _in_folders(file.path for file in resolved.files)
    return {_short(file.path) if short else file.path: file for file in resolved.files}


def credentials() -> Mapping[str, str]:
    """The headers by which an MLflow server knows who asks: those that its own client would send."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{part}", "") for part in ("USERNAME", "PASSWORD"))
    if name:
        return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _chosen(source: Source, names: Sequence[str]) -> list[str]:
    """The names to take. `include` means a model's files as they are in the snapshot."""
    inner = [name for name in names if name.startswith(_FOLDERS)] if _MARK in names else []
    if not inner:
        return select(source, names)
    check_names(_short(name) for name in inner)
    by_short = {_short(name): name for name in inner}
    return [by_short[name] for name in select(source, list(by_short))]


def _in_folders(names: Iterable[str]) -> bool:
    return all(name.startswith(_FOLDERS) for name in names)


def _short(name: str) -> str:
    """The name without the folder of `mlflow.transformers` that it lies in."""
    folder = next((folder for folder in _FOLDERS if name.startswith(folder)), "")
    return name.removeprefix(folder)


def _as_one_folder(destination: Path, files: Sequence[SnapshotFile]) -> tuple[SnapshotFile, ...]:
    for file in files:
        target = destination / _short(file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        (destination / file.path).rename(target)
    for folder in ("model", "components/tokenizer", "components", "peft"):
        with suppress(OSError):  # a folder that is in use or was never there
            (destination / folder).rmdir()
    return tuple(replace(file, path=_short(file.path)) for file in files)


class _Located(BaseModel):
    artifact_uri: str


class _Logged(BaseModel):
    info: _Located


class _LoggedAnswer(BaseModel):
    model: _Logged


class _Version(BaseModel):
    version: str = Field(pattern=r"^[1-9][0-9]*$")


class _VersionAnswer(BaseModel):
    model_version: _Version


class _Entry(BaseModel):
    path: str = Field(pattern=r"^[^/]+$")
    is_dir: bool = False
    file_size: int = Field(default=0, ge=0)


class _Listing(BaseModel):
    files: tuple[_Entry, ...] = ()


_Form = TypeVar("_Form", bound=BaseModel)


@dataclass(frozen=True)
class _Server:
    """A tracking server with its registry. `address` begins with http:// or https:// and has no slash at its end."""

    address: str

    @classmethod
    def of(cls, access: Access) -> _Server:
        if not access.mlflow:
            raise SettingsError(
                "a source of MLflow needs its server", hint="ENGINEHOUSE_MLFLOW=https://HOST names the tracking server"
            )
        return cls(access.mlflow.rstrip("/"))

    def pinned(self, uri: ModelsUri) -> ModelsUri:
        """The same model with the version that its alias means by now."""
        if not uri.alias:
            return uri
        answer = self._ask(_VersionAnswer, uri, "registered-models/alias", name=uri.name, alias=uri.alias)
        return replace(uri, alias="", version=answer.model_version.version)

    def place(self, uri: ModelsUri | ArtifactsUri) -> S3Uri | ArtifactsUri:
        """Where the files of a model lie. A version that was made of a logged model may name that instead."""
        if isinstance(uri, ArtifactsUri):
            return uri
        if uri.logged:
            found = self._ask(_LoggedAnswer, uri, f"logged-models/{uri.logged}").model.info.artifact_uri
        else:
            asked = {"name": uri.name, "version": uri.version}
            found = self._ask(_Located, uri, "model-versions/get-download-uri", **asked).artifact_uri
        try:
            place = parse_source(f"{found.rstrip('/')}/{uri.path}".rstrip("/"))
        except SourceError:
            place = None
        if isinstance(place, ModelsUri) and place.logged and not uri.logged:
            return self.place(place)
        if not isinstance(place, S3Uri | ArtifactsUri):
            raise SourceError(
                f"{uri} lies at {found.partition('?')[0].rpartition('@')[2]!r}, which cannot be read from here",
                code="source-place",
                hint="Have the server give its artifacts out (mlflow-artifacts:/), or keep them below s3://.",
            )
        return place

    def files(self, path: str) -> Iterator[tuple[str, int]]:
        """Names below `path` in the server's storage, with their sizes in bytes."""
        level, listed = [""], 0
        for _ in range(_DEEPEST):
            below: list[str] = []
            for folder in level:
                address = f"{self.address}/api/2.0/mlflow-artifacts/artifacts"
                with self._errors(f"mlflow-artifacts:/{path}"):
                    document = get_json(address, credentials(), path=f"{path}/{folder}".rstrip("/"))
                for entry in read_as(_Listing, document, address, "MLflow").files:
                    if (listed := listed + 1) > _MOST_FILES or entry.path in (".", ".."):
                        raise not_understood(address, f"lists {entry.path!r}, and more than {listed - 1} before it")
                    if entry.is_dir:
                        below.append(f"{folder}{entry.path}/")
                    else:
                        yield f"{folder}{entry.path}", entry.file_size
            level = below

    def fetch(self, path: str, file: PinnedFile, destination: Path, advance: ByteCounter) -> SnapshotFile:
        def read(start: int) -> Iterator[bytes]:
            url = f"{self.address}/api/2.0/mlflow-artifacts/artifacts/{quote(f'{path}/{file.path}')}"
            with self._errors(f"mlflow-artifacts:/{path}/{file.path}"):
                yield from read_from(url, start, credentials())

        size = file.size or 0
        return replace(save(resuming(read, size), destination / file.path, size, advance), path=file.path)

    def _ask(self, form: type[_Form], uri: ModelsUri, path: str, **query: str) -> _Form:
        address = f"{self.address}/api/2.0/mlflow/{path}"
        with self._errors(str(uri)):
            return read_as(form, get_json(address, credentials(), **query), address, "MLflow")

    @contextmanager
    def _errors(self, what: str) -> Generator[None]:
        try:
            yield
        except HttpRefused as error:
            if error.status in (401, 403):
                raise SourceError(
                    f"the MLflow server refuses who asks for {what}",
                    code="source-gated",
                    hint="Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
                ) from None
            raise SourceError(
                f"the MLflow server has no {what} ({error.status})",
                code="source-missing",
                hint="Look at the name, and at the version or alias.",
            ) from None
