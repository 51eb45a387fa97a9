"""Artifacts: immutable sets of files in the store, each with a manifest. The store is the only cache.

artifacts/KIND/MODEL/IDENTITY/manifest.json      created once; names the attempt that counts
artifacts/KIND/MODEL/IDENTITY/ATTEMPT/…files…    no two writers share a key
artifacts/KIND/MODEL/IDENTITY/signatures/ATTEMPT.json   where a signing key is set
artifacts/KIND/MODEL/IDENTITY/damaged/….json     manifests of artifacts that were replaced
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreError
from infra.progress import ByteCounter, Progress
from infra.s3.bucket import Bucket
from infra.s3.download import Wanted, download_files
from infra.s3.upload import upload_files
from tasks.store.attempt import Attempt, attempt_for
from tasks.store.cell import attempts, contended, written
from tasks.store.identity import Identity
from tasks.store.record import Record

Kind = Literal["snapshot", "checkpoint", "engine", "repository"]


def safe_path(path: str) -> str:
    """`path` if it is relative, in POSIX form and stays inside its folder; else ValueError."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"'{path}' is not a plain relative path")
    return path


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
    """Who made it: task, version of Enginehouse's code, host and what the step measured of its runtime."""

    task: str
    code: str
    host: str = Field(default_factory=platform.node)
    runtime: dict[str, str] = {}
    flow_run: str = ""
    seconds: float = 0
    peak_memory_bytes: int = 0
    peak_gpu_bytes: int = 0


class Manifest(Record):
    kind: Kind
    model: str
    identity: dict[str, JsonValue]
    inputs: dict[str, str]
    """Artifact references by role, as `KIND/MODEL/IDENTITY`."""
    attempt: str
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
    kind: Kind
    model: str
    identity: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.model}/{self.identity}"

    @classmethod
    def parse(cls, text: str) -> ArtifactRef:
        kind, model, identity = text.split("/")
        if kind not in ("snapshot", "checkpoint", "engine", "repository"):
            raise ValueError(f"'{kind}' is not a kind of artifact")
        return cls(kind, model, identity)

    @property
    def folder(self) -> str:
        return f"artifacts/{self}/"


@dataclass(frozen=True)
class Artifact:
    """An artifact whose manifest was read and whose files passed the quick check."""

    ref: ArtifactRef
    manifest: Manifest


@dataclass(frozen=True)
class Lookup:
    """What the store holds under an identity: `artifact` where it is intact, else why not."""

    artifact: Artifact | None
    problem: str = ""
    manifest_etag: str | None = None

    @property
    def attempt(self) -> str:
        """Of the intact artifact; empty where there is none."""
        return "" if self.artifact is None else self.artifact.manifest.attempt


class ArtifactStore:
    def __init__(self, bucket: Bucket, sign: Callable[[ArtifactRef, Manifest], bytes] | None = None) -> None:
        self.bucket = bucket
        self._sign = sign

    def look_up(self, ref: ArtifactRef) -> Lookup:
        """The quick check: the manifest and one LIST of its attempt (sizes, ETags). No file is read."""
        key = ref.folder + "manifest.json"
        record = self.bucket.get(key)
        if record is None:
            return Lookup(None, "not in the store")
        try:
            manifest = Manifest.model_validate_json(record.body)
        except ValidationError as error:
            return Lookup(None, f"unreadable manifest: {error.errors()[0]['msg']}", record.etag)
        if manifest.state == "collected":
            return Lookup(None, "its files were collected", record.etag)
        attempt = f"{ref.folder}{manifest.attempt}/"
        listed = {entry.key.removeprefix(attempt): entry for entry in self.bucket.list(attempt)}
        for file in manifest.files:
            entry = listed.get(file.path)
            if entry is None:
                return Lookup(None, f"'{file.path}' is missing", record.etag)
            if (entry.size, entry.etag) != (file.size, file.etag):
                return Lookup(None, f"'{file.path}' was altered", record.etag)
        return Lookup(Artifact(ref, manifest), manifest_etag=record.etag)

    def find(self, ref: ArtifactRef) -> Artifact | None:
        """The artifact, if it is in the store and intact."""
        return self.look_up(ref).artifact

    def need(self, ref: ArtifactRef) -> Artifact:
        """The artifact; raises ArtifactDamaged where it is missing or not intact."""
        found = self.look_up(ref)
        if found.artifact is None:
            raise ArtifactDamaged(f"{ref}: {found.problem}", hint="run the rebuild again: it is then made anew")
        return found.artifact

    def read(self, artifact: Artifact, path: str) -> bytes:
        """One small file of an artifact, checked. Raises ArtifactDamaged."""
        expected = {file.path: file.sha256 for file in artifact.manifest.files}.get(path)
        record = self.bucket.get(f"{artifact.ref.folder}{artifact.manifest.attempt}/{path}")
        if record is None or hashlib.sha256(record.body).hexdigest() != expected:
            raise ArtifactDamaged(f"{artifact.ref}: '{path}' is missing or altered")
        return record.body

    def publish(
        self,
        ref: ArtifactRef,
        identity: Identity,
        folder: Path,
        *,
        inputs: Mapping[str, ArtifactRef],
        producer: Producer,
        progress: Progress = lambda done, total: None,
        replaces: str = "",
    ) -> Artifact:
        """Upload every file below `folder` and commit the manifest.

        Where an intact artifact of this identity is already there, that one counts and ours is garbage, unless it is
        the attempt that `replaces` names: what was there when the work began. A successor of a writer that was stopped
        meanwhile has another, and stays. A damaged one is replaced: its manifest goes to `damaged/`, the new one takes
        its place only if nobody else's did. What an earlier call for the same folder sent, until it failed or was
        killed, is not sent again. Raises StoreUnavailable (retryable) where the store is away.
        """
        with attempt_for(folder, partial(self._uncommitted, ref)) as attempt:
            files = self._upload(ref, attempt, folder, progress)
            manifest = Manifest(
                kind=ref.kind,
                model=ref.model,
                identity=dict(identity.document),
                inputs={role: str(input_ref) for role, input_ref in inputs.items()},
                attempt=attempt.name,
                files=files,
                producer=producer,
                created=datetime.now(UTC),
            )
            if self._sign is not None:
                # Before the manifest: an artifact that must be signed is never without it.
                self.bucket.put(signature_key(ref, attempt.name), self._sign(ref, manifest))
            return self._commit(ref, manifest, replaces)

    def _uncommitted(self, ref: ArtifactRef, attempt: str) -> bool:
        """Whether the manifest does not name `attempt`: what is committed is never written again."""
        record = self.bucket.get(ref.folder + "manifest.json")
        return record is None or attempt.encode() not in record.body

    def _upload(self, ref: ArtifactRef, attempt: Attempt, folder: Path, progress: Progress) -> tuple[ManifestFile, ...]:
        entries = sorted(folder.rglob("*"))
        if links := [path for path in entries if path.is_symlink()]:
            raise ArtifactDamaged(f"'{links[0].relative_to(folder)}' is a link, and artifacts hold files alone")
        paths = {
            safe_path(PurePosixPath(path.relative_to(folder)).as_posix()): path for path in entries if path.is_file()
        }
        total = sum(path.stat().st_size for path in paths.values())
        prefix = f"{ref.folder}{attempt.name}/"
        stored = upload_files(self.bucket, prefix, paths, ByteCounter(progress, total), resume=attempt.resumed)
        return tuple(
            ManifestFile(path=name, size=file.size, sha256=file.sha256, etag=file.etag, checksum=file.checksum)
            for name, file in stored.items()
        )

    def _commit(self, ref: ArtifactRef, manifest: Manifest, replaces: str) -> Artifact:
        key = ref.folder + "manifest.json"
        body = manifest.model_dump_json(indent=1).encode()
        # No Cell: of two manifests one wins, whole. The files below it decide which, and the loser is kept aside.
        for _ in attempts():
            try:
                self.bucket.create(key, body)
                return Artifact(ref, manifest)
            except PreconditionFailed:
                existing = self.look_up(ref)
            if existing.artifact is not None and existing.attempt == manifest.attempt:
                return existing.artifact  # our own write, whose answer was lost
            if existing.artifact is not None and existing.attempt != replaces:
                self._discard(ref, manifest)
                return existing.artifact
            old = self.bucket.get(key)
            if old is None or old.etag != existing.manifest_etag:
                continue  # another writer replaced it while we looked
            self.bucket.put(f"{ref.folder}damaged/{old.etag}.json", old.body)
            if written(self.bucket, key, body, old.etag):
                return Artifact(ref, manifest)
        raise contended(key)

    def _discard(self, ref: ArtifactRef, manifest: Manifest) -> None:
        for file in manifest.files:
            try:
                self.bucket.delete(f"{ref.folder}{manifest.attempt}/{file.path}")
            except StoreError:
                return  # garbage collection finds what stays

    def download(self, artifact: Artifact, folder: Path, progress: Progress = lambda done, total: None) -> None:
        """Bring all files to `folder`, each checked against its sha256; `folder` appears whole or not at all."""
        beside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
        attempt = f"{artifact.ref.folder}{artifact.manifest.attempt}/"
        wanted = [
            Wanted(attempt + file.path, beside / safe_path(file.path), file.size, file.sha256, file.etag)
            for file in artifact.manifest.files
        ]
        try:
            for file in wanted:
                file.path.parent.mkdir(parents=True, exist_ok=True)
            download_files(self.bucket, wanted, ByteCounter(progress, artifact.manifest.size))
            place(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def signature_key(ref: ArtifactRef, attempt: str) -> str:
    """Where the signature of an attempt lies, if it was signed."""
    return f"{ref.folder}signatures/{attempt}.json"


def place(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; where another process was quicker, theirs stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
