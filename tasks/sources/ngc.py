"""`ngc://org/team/name@version`: a version of a model in NVIDIA's registry NGC, over its REST interface.

The key comes from where NVIDIA's own tools look for it (`NGC_API_KEY`); without one, public models are read as a guest.
Source of addresses and documents: ngcsdk 4.37, with which the tests compare.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, Field

from infra.errors import SourceError, SourceUnavailable
from infra.progress import ByteCounter, Progress
from tasks.models.source import Source
from tasks.models.source_uri import NgcUri
from tasks.sources.download import changed, resuming, save
from tasks.sources.names import select
from tasks.sources.resolved import PinnedFile, ResolvedSource, SnapshotFile, pinned
from tasks.sources.rest import HttpRefused, get_json, read_as, read_from

_API = "https://api.ngc.nvidia.com"
_LOGIN = "https://authn.nvidia.com"
_PAGE = 500
_MOST_PAGES = 200
_COMPLETE = "UPLOAD_COMPLETE"


def resolve(source: Source, uri: NgcUri) -> ResolvedSource:
    """Pin the version, and each file by its size and, where NGC has one, its sha256. `latest` becomes a version."""
    registry = _Registry(uri)
    version = registry.latest() if uri.is_latest else uri.version
    registry.require_complete(version)
    listed = {file.path: file for file in registry.files(version)}
    files = [_pin(listed[name], version) for name in select(source, list(listed))]
    about = {"scheme": "ngc", "org": uri.org, "team": uri.team, "model": uri.name, "version": version}
    return pinned(source, about, files)


def fetch(resolved: ResolvedSource, uri: NgcUri, destination: Path, progress: Progress) -> tuple[SnapshotFile, ...]:
    """Download the files of the pinned version. A transfer that breaks off goes on where it was."""
    registry, version = _Registry(uri), str(resolved.pin["version"])
    advance = ByteCounter(progress, resolved.known_bytes)
    fetched: list[SnapshotFile] = []
    for file in resolved.files:
        target, size = destination / file.path, file.size or 0

        def read(start: int, path: str = file.path) -> Iterator[bytes]:
            return registry.read(version, path, start)

        saved = save(resuming(read, size), target, size, advance)
        if file.digest not in (f"sha256:{saved.sha256}", _by_version(version)):
            target.unlink()
            raise changed(resolved.uri, file.path)
        fetched.append(SnapshotFile(file.path, saved.size, saved.sha256))
    return tuple(fetched)


class _File(BaseModel):
    path: str
    size: int = Field(alias="sizeInBytes", ge=0)
    sha256: str | None = Field(default=None, alias="sha256_base64")


class _Pages(BaseModel):
    total: int = Field(default=1, alias="totalPages", ge=0, le=_MOST_PAGES)


class _Files(BaseModel):
    files: tuple[_File, ...] = Field(default=(), alias="modelFiles")
    pages: _Pages = Field(default=_Pages(), alias="paginationInfo")


class _Version(BaseModel):
    status: str


class _VersionAnswer(BaseModel):
    version: _Version = Field(alias="modelVersion")


class _Model(BaseModel):
    latest: str = Field(default="", alias="latestVersionIdStr")


class _ModelAnswer(BaseModel):
    model: _Model


class _Addresses(BaseModel):
    urls: tuple[str, ...] = Field(min_length=1)


class _Token(BaseModel):
    token: str


_Form = TypeVar("_Form", bound=BaseModel)


@dataclass(frozen=True)
class _Registry:
    """NGC as one model's files are read from it."""

    uri: NgcUri

    def latest(self) -> str:
        answer = self._ask(_ModelAnswer, self._model).model.latest
        if not answer:
            raise SourceError(f"{self.uri} has no version yet", code="source-revision", hint="Look at its page on NGC.")
        return answer

    def require_complete(self, version: str) -> None:
        status = self._ask(_VersionAnswer, f"{self._model}/versions/{_quoted(version)}").version.status
        if status != _COMPLETE:
            raise SourceError(
                f"version {version} of {self.uri} is {status}: not all of its files are there",
                code="source-revision",
                hint="Wait until its upload is complete, or name another version.",
            )

    def files(self, version: str) -> Iterator[_File]:
        address, page, total = f"{self._model}/versions/{_quoted(version)}/files", 0, 1
        while page < total:
            answer = self._ask(_Files, address, **{"page-size": _PAGE}, **({"page-number": page} if page else {}))
            yield from answer.files
            page, total = page + 1, answer.pages.total

    def read(self, version: str, path: str, start: int) -> Iterator[bytes]:
        """A file from an offset on. Its address is signed, and asked for again by each try: it lasts for an hour."""
        group = "/".join(("org", self.uri.org, *(("team", self.uri.team) if self.uri.team else ())))
        guest = "" if self._key else "models/"
        infix = "models/" if self._key else ""
        address = f"{_api()}/v2/{guest}{group}/{infix}{self.uri.name}/{_quoted(version)}/files"
        (url, *_) = self._ask(_Addresses, address, path=path).urls
        try:
            yield from read_from(url, start, {})
        except HttpRefused as error:
            raise SourceUnavailable(f"the storage of NGC answered {error.status} for {path}") from None

    @property
    def _model(self) -> str:
        if not self._key:
            return f"{_api()}/v2/models/{'/'.join(filter(None, (self.uri.org, self.uri.team, self.uri.name)))}"
        team = f"/team/{self.uri.team}" if self.uri.team else ""
        return f"{_api()}/v2/org/{self.uri.org}{team}/models/{self.uri.name}"

    @cached_property
    def _key(self) -> str:
        return os.environ.get("NGC_CLI_API_KEY") or os.environ.get("NGC_API_KEY") or ""

    def _headers(self) -> Mapping[str, str]:
        """Keys of today are sent as they are, older ones are changed into a token, which lasts for minutes."""
        if not self._key:
            return {}
        if self._key.startswith("nvapi-"):
            return {"Authorization": f"Bearer {self._key}"}
        login = os.environ.get("NGC_CLI_AUTH_URL") or _LOGIN
        basic = base64.b64encode(f"$oauthtoken:{self._key}".encode()).decode()
        groups = [self.uri.org, *([f"{self.uri.org}/{self.uri.team}"] if self.uri.team else [])]
        scopes = [f"group/ngc:{group}" for group in groups]
        with self._errors():
            answer = get_json(f"{login}/token", {"Authorization": f"Basic {basic}"}, service="ngc", scope=scopes)
        return {"Authorization": f"Bearer {read_as(_Token, answer, login, 'NGC').token}"}

    def _ask(self, form: type[_Form], address: str, **query: str | int) -> _Form:
        headers = self._headers()
        with self._errors():
            return read_as(form, get_json(address, headers, **query), address, "NGC")

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except HttpRefused as error:
            raise self._refused(error.status) from None

    def _refused(self, status: int) -> SourceError:
        if status in (401, 403):
            return SourceError(
                f"NGC refuses {'the key in use' if self._key else 'a guest'} for {self.uri}",
                code="source-gated",
                hint="Set NGC_API_KEY to a key that may read the registry of this organization.",
            )
        if status == 412:
            return SourceError(
                f"{self.uri} has terms of use that were not accepted yet",
                code="source-gated",
                hint="Accept them on the model's page on NGC, with the account of the key in use.",
            )
        return SourceError(
            f"NGC has no {self.uri}, or hides it from {'the key in use' if self._key else 'a guest'} ({status})",
            code="source-missing",
            hint="Look at organization, team, name and version; for a private model set NGC_API_KEY.",
        )


def _pin(file: _File, version: str) -> PinnedFile:
    try:
        digest = base64.b64decode(file.sha256 or "", validate=True)
    except binascii.Error:
        digest = b""
    return PinnedFile(file.path, file.size, f"sha256:{digest.hex()}" if len(digest) == 32 else _by_version(version))


def _by_version(version: str) -> str:
    """What pins a file of which NGC has no digest: a version does not change once it is complete."""
    return f"ngc-version:{version}"


def _api() -> str:
    return (os.environ.get("NGC_CLI_API_URL") or _API).rstrip("/")


def _quoted(version: str) -> str:
    return quote(version, safe="")
