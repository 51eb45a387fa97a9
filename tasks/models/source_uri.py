"""The addresses of weights: `hf://org/repo@revision`, with `/folder` behind it for a part of a repository,
`s3://bucket/prefix`, `ngc://org/team/name@version`, `models:/name/version`, `mlflow-artifacts:/path`, `file:///path`,
`pip://distribution@version/path/in/wheel`.

Parsing is strict, because addresses also come from outside. A parsed address has no `..`, no empty segment, no query
and no credentials. Its `str()` is the one spelling that patterns are compared with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from packaging.utils import canonicalize_name

from infra.errors import SourceError

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_REPOSITORY = re.compile(f"{_SEGMENT}/{_SEGMENT}")
_HUB = re.compile(
    rf"hf://(?P<repository>{_REPOSITORY.pattern})@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/{_SEGMENT})*)"
)
_BUCKET = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>.+?)/?")
_NGC = re.compile(
    rf"ngc://(?P<org>{_SEGMENT})/(?:(?P<team>{_SEGMENT})/)?(?P<name>{_SEGMENT})@(?P<version>[A-Za-z0-9_][A-Za-z0-9_.+-]*)"
)
_MODELS = re.compile(
    rf"models:/(?:(?P<logged>m-[0-9a-f]{{32}})|(?P<name>{_SEGMENT})(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>{_SEGMENT}))"
    r"(?:/(?P<path>.+))?)"
)
_ARTIFACTS = re.compile(r"mlflow-artifacts:/(?P<path>[^/].*)")
_FILE = re.compile(r"file://(?P<path>/.+)")
_PIP = re.compile(
    r"pip://(?P<distribution>[A-Za-z0-9][A-Za-z0-9._-]*)@(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)/(?P<member>.+)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubUri:
    """A repository on a Hugging Face hub. `revision` is a branch, a tag or a commit, and a folder of it may follow."""

    scheme: ClassVar[str] = "hf"
    repository: str
    revision: str

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a full commit, which cannot move."""
        return _COMMIT.fullmatch(self.revision.partition("/")[0]) is not None

    @property
    def readings(self) -> tuple[tuple[str, str], ...]:
        """A revision and a folder, empty for all, in each way in which they can be told apart: names of branches have
        slashes too. The longest revision comes first."""
        segments = self.revision.split("/")
        counts = (1,) if self.is_commit else range(len(segments), 0, -1)
        return tuple(("/".join(segments[:count]), "/".join(segments[count:])) for count in counts)

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


@dataclass(frozen=True)
class S3Uri:
    """The object `prefix`, or every object below `prefix/`."""

    scheme: ClassVar[str] = "s3"
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class NgcUri:
    """A version of a model in NVIDIA's registry NGC. `team` is empty for a model of the organization itself."""

    scheme: ClassVar[str] = "ngc"
    org: str
    team: str
    name: str
    version: str

    @property
    def is_latest(self) -> bool:
        """Whether it means the newest version, whichever that is when it is looked at."""
        return self.version == "latest"

    def __str__(self) -> str:
        return f"ngc://{'/'.join(filter(None, (self.org, self.team, self.name)))}@{self.version}"


@dataclass(frozen=True)
class ModelsUri:
    """A model of an MLflow server: a version of a registered one, or that which an alias means, or a logged one.

    `path` is a folder in it; empty for all of it.
    """

    scheme: ClassVar[str] = "models"
    name: str = ""
    version: str = ""
    alias: str = ""
    logged: str = ""
    path: str = ""

    def __str__(self) -> str:
        model = self.logged or self.name + (f"@{self.alias}" if self.alias else f"/{self.version}")
        return f"models:/{model}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True)
class ArtifactsUri:
    """A folder in the storage that an MLflow server gives out."""

    scheme: ClassVar[str] = "mlflow-artifacts"
    path: str

    def __str__(self) -> str:
        return f"mlflow-artifacts:/{self.path}"


@dataclass(frozen=True)
class FileUri:
    """A file, or a folder with everything below it, on the machine that fetches."""

    scheme: ClassVar[str] = "file"
    path: str

    def __str__(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True)
class PipUri:
    """One member of one wheel. `distribution` is the normalized name."""

    scheme: ClassVar[str] = "pip"
    distribution: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pip://{self.distribution}@{self.version}/{self.member}"


SourceUri = HubUri | S3Uri | NgcUri | ModelsUri | ArtifactsUri | FileUri | PipUri


def parse_source(uri: str) -> SourceUri:
    """Read an address. Raises SourceError `source-invalid`, whose hint lists the right forms."""
    scheme = uri.partition(":/")[0]
    if "\\" in uri or " " in uri or not uri.isprintable():
        raise SourceError(f"{uri!r} holds characters that no source may", hint=_FORMS)
    match scheme:
        case "hf" if found := _HUB.fullmatch(uri):
            parsed, path = (
                HubUri(found["repository"], found["revision"]),
                f"{found['repository']}/{found['revision']}",
            )
        case "s3" if found := _BUCKET.fullmatch(uri):
            parsed, path = S3Uri(found["bucket"], found["prefix"]), found["prefix"]
        case "ngc" if found := _NGC.fullmatch(uri):
            parsed = NgcUri(found["org"], found["team"] or "", found["name"], found["version"])
            path = uri.removeprefix("ngc://")
        case "models" if found := _MODELS.fullmatch(uri):
            given = {name: value for name, value in found.groupdict().items() if value is not None}
            given["path"] = given.get("path", "").removesuffix("/")
            parsed, path = ModelsUri(**given), uri.removeprefix("models:/").removesuffix("/")
        case "mlflow-artifacts" if found := _ARTIFACTS.fullmatch(uri):
            parsed, path = ArtifactsUri(found["path"].removesuffix("/")), found["path"].removesuffix("/")
        case "file" if found := _FILE.fullmatch(uri):
            parsed, path = FileUri(found["path"].rstrip("/")), found["path"].strip("/")
        case "pip" if found := _PIP.fullmatch(uri):
            parsed = PipUri(canonicalize_name(found["distribution"]), found["version"], found["member"])
            path = found["member"]
        case "hf" if _HUB.fullmatch(f"{uri}@main"):
            raise SourceError(f"{uri!r} names no revision", hint=f"for its newest commit add @main: {uri}@main")
        case _:
            raise SourceError(f"{uri!r} is not the address of a source", hint=_FORMS)
    if any(segment in ("", ".", "..") or (".." in segment and scheme == "hf") for segment in path.split("/")):
        raise SourceError(f"{uri!r} has an empty, `.` or `..` segment", hint=_FORMS)
    return parsed


def floats(uri: SourceUri) -> bool:
    """Whether an address leaves open which revision it means: a branch, the newest version, an alias."""
    match uri:
        case HubUri():
            return not uri.is_commit
        case NgcUri():
            return uri.is_latest
        case ModelsUri():
            return bool(uri.alias)
        case _:
            return False


def revised(uri: SourceUri, revision: str) -> SourceUri | None:
    """The same model in another revision: of a hub, a version of NGC, a version or alias of MLflow.

    None for what has no revisions, and for a revision of another form.
    """
    match uri:
        case HubUri():
            text = f"hf://{uri.repository}@{revision}"
        case NgcUri():
            text = str(replace(uri, version=revision))
        case ModelsUri(name=name) if name:
            named = {"version": revision, "alias": ""} if revision.isdecimal() else {"version": "", "alias": revision}
            text = str(replace(uri, **named))
        case _:
            return None
    return parse_source(text)


def is_revision_of(uri: SourceUri, other: SourceUri) -> bool:
    """Whether both are revisions of one model, and of the same folder in it."""
    match uri, other:
        case HubUri(), HubUri():
            return uri.repository == other.repository
        case NgcUri(), NgcUri():
            return replace(uri, version="") == replace(other, version="")
        case ModelsUri(), ModelsUri():
            return uri.name != "" and (uri.name, uri.path) == (other.name, other.path)
        case _:
            return False


def is_repository(name: str) -> bool:
    """Whether `name` is that of a repository on a hub, `org/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def glob_match(pattern: str, text: str) -> bool:
    """Whether `text` matches. `*` and `?` stay within a `/` segment, `**` crosses segments; all else is literal."""
    translated = "".join(
        {"**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part) or re.escape(part)
        for part in re.split(r"(\*\*|\*|\?)", pattern)
    )
    return re.fullmatch(translated, text) is not None


_FORMS = (
    "Sources are hf://org/repo@revision or hf://org/repo@revision/folder, s3://bucket/prefix, "
    "ngc://org/team/name@version, models:/name/version, models:/name@alias, models:/m-ID, mlflow-artifacts:/path, "
    "file:///absolute/path "
    "or pip://distribution@version/path/in/wheel."
)
