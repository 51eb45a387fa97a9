"""What an artifact is: an immutable set of files in the store, with a manifest that names each of them.

artifacts/KIND/IDENTITY/manifest.json      created once; names the attempt that counts
artifacts/KIND/IDENTITY/ATTEMPT/…files…    no two writers share a key
artifacts/KIND/IDENTITY/signatures/ATTEMPT.json   if a signing key is set
artifacts/KIND/IDENTITY/damaged/….json     manifests of artifacts that were replaced
artifacts/KIND/IDENTITY/{outputs,releases,models}/   notes, see `notes`

Models with equal weights and recipes share an artifact. Before, each had its own, below artifacts/KIND/MODEL/IDENTITY/.
That layout is read, signed and collected, and nothing new is written into it.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, ClassVar, Literal, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator

from infra.errors import ArtifactDamaged
from tasks.store.identity import Identity
from tasks.store.names import Segment, is_identity, segment
from tasks.store.record import Record

Kind = Literal["snapshot", "checkpoint", "engine", "repository", "reference"]


def safe_path(path: str) -> str:
    """Returns `path`. Raises ValueError unless it is relative, in POSIX form, and stays inside its folder."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"'{path}' is not a plain relative path")
    return path


def _reference(text: str) -> str:
    return str(ArtifactRef.parse(text))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ManifestFile(_Frozen):
    """One file: size in bytes, hexadecimal sha256, ETag and checksum as the store returned them."""

    path: Annotated[str, AfterValidator(safe_path)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    etag: str
    checksum: str = ""


class Producer(_Frozen):
    """Who made an artifact: task, version of Enginehouse's code, host, and what the step measured of its runtime."""

    task: str
    code: str
    host: str = Field(default_factory=platform.node)
    runtime: dict[str, str] = {}
    flow_run: str = ""
    seconds: float = 0
    peak_memory_bytes: int = 0
    peak_gpu_bytes: int = 0


class Manifest(Record):
    """What an artifact is, what it was made from, and each of its files.

    Version 1 lies in the layout of before, and its inputs do too.
    """

    newest: ClassVar[int] = 2

    schema_version: int = 2

    kind: Kind
    model: Annotated[str, AfterValidator(lambda name: name and segment(name))]
    """The model whose rebuild made it, if that is known; others may use it too."""
    identity: dict[str, JsonValue]
    inputs: dict[str, Annotated[str, AfterValidator(_reference)]]
    """Artifact references by role, as `ArtifactRef` writes them."""
    attempt: Segment
    files: tuple[ManifestFile, ...]
    producer: Producer
    created: datetime
    state: Literal["present", "collected"] = "present"

    @field_validator("files")
    @classmethod
    def _each_path_once(cls, files: tuple[ManifestFile, ...]) -> tuple[ManifestFile, ...]:
        if len({file.path for file in files}) != len(files):
            raise ValueError("a path occurs twice")
        return files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """The digest of the bytes that came out: sha256 over paths and their sha256, in order of path."""
        return Identity({file.path: file.sha256 for file in self.files}).digest


@dataclass(frozen=True)
class ArtifactRef:
    """The name of an artifact, which may be in the store or not: `KIND/IDENTITY`.

    With `model` it also says that the artifact lies in the layout of before, and is written `KIND/MODEL/IDENTITY`. Two
    references are equal if they name the same artifact, wherever it lies.
    """

    kind: Kind
    identity: str
    model: str = field(default="", compare=False)

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.model, self.identity) if part)

    @classmethod
    def parse(cls, text: str) -> ArtifactRef:
        """Raises ValueError if `text` is not a reference with a whole identity."""
        kind, model, identity = parts(text)
        if not is_identity(identity):
            raise ValueError(f"{identity[:80]!r} is not an identity")
        return cls(kind, identity, model)

    @property
    def own(self) -> ArtifactRef:
        """The same artifact where it lies, or would lie, by itself: not in the layout of before."""
        return ArtifactRef(self.kind, self.identity)

    @property
    def folder(self) -> str:
        """The beginning of all its keys in the store."""
        return f"artifacts/{self}/"


def parts(text: str) -> tuple[Kind, str, str]:
    """Kind, model (empty if there is none) and the beginning of an identity. Raises ValueError."""
    kind, *models, identity = text.split("/")
    if len(models) > 1:
        raise ValueError(f"{text[:200]!r} is not a reference")
    if kind not in get_args(Kind):
        raise ValueError(f"{kind[:80]!r} is not a kind of artifact")
    return cast("Kind", kind), segment(models[0]) if models else "", segment(identity)


def same_artifact(one: str, other: str) -> bool:
    """Whether two references, as records have them, name one artifact, wherever it lies."""
    return (one.partition("/")[0], one.rpartition("/")[2]) == (other.partition("/")[0], other.rpartition("/")[2])


def recorded(reference: str) -> ArtifactRef:
    """The artifact that a record names. Raises ArtifactDamaged, code `record-invalid`, if it names none."""
    try:
        return ArtifactRef.parse(reference)
    except ValueError as error:
        raise ArtifactDamaged(
            f"a record names an artifact that cannot be: {error}",
            hint="find out who wrote it; a rebuild makes the next release with records of its own",
            code="record-invalid",
        ) from error


@dataclass(frozen=True)
class Artifact:
    """An artifact whose manifest was read and whose files passed the quick check."""

    ref: ArtifactRef
    manifest: Manifest


def signature_key(ref: ArtifactRef, attempt: str) -> str:
    """The key of an attempt's signature, which exists if the attempt was signed."""
    return f"{ref.folder}signatures/{attempt}.json"
