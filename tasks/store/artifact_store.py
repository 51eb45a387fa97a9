"""The artifacts in a bucket: look one up, publish a folder as one, download it. The store is the only cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from infra.errors import ArtifactDamaged, PreconditionFailed, StoreError
from infra.files import whole_folder
from infra.progress import ByteCounter, Progress
from infra.s3.bucket import Bucket
from infra.s3.download import Wanted, download_files
from infra.s3.upload import upload_files
from tasks.store.artifact import Artifact, ArtifactRef, Kind, Manifest, ManifestFile, Producer, safe_path, signature_key
from tasks.store.attempt import Attempt, attempt_for
from tasks.store.cell import attempts, contended, written
from tasks.store.identity import Identity
from tasks.store.inventory import in_parallel, models_before
from tasks.store.notes import note_output
from tasks.store.signing import Sign, artifact_statement


@dataclass(frozen=True)
class Lookup:
    """What the store holds under an identity: `artifact` if it is intact, else the `problem` with it."""

    artifact: Artifact | None
    problem: str = ""
    manifest_etag: str | None = None

    @property
    def attempt(self) -> str:
        """Of the intact artifact; empty if there is none."""
        return "" if self.artifact is None else self.artifact.manifest.attempt


class ArtifactStore:
    """The artifacts in a bucket. With `sign`, every artifact is signed before its manifest is committed."""

    def __init__(self, bucket: Bucket, sign: Sign | None = None) -> None:
        self.bucket = bucket
        self.sign = sign
        self._models_before: dict[Kind, list[str]] = {}

    def look_up(self, ref: ArtifactRef) -> Lookup:
        """The quick check: the manifest and one LIST of its attempt (sizes, ETags). No file is read.

        It looks where `ref` says, then where the artifact would lie by itself, then in the layout of before, where any
        model may have an equal one. The first intact one counts; its reference says where it lies.
        """
        problem: Lookup | None = None
        for place in [ref, ref.own] if ref.model else [ref]:
            found = self._look_at(place)
            if found.artifact is not None:
                return found
            problem = found if problem is None or problem.manifest_etag is None else problem
        assert problem is not None
        for found in in_parallel(self._look_at, self._places_before(ref)):
            if found.artifact is not None:
                return found
            problem = found if problem.manifest_etag is None else problem
        return problem

    def _places_before(self, ref: ArtifactRef) -> list[ArtifactRef]:
        """Where `ref` may lie in the layout of before. No model is new to that layout, so its models are read once."""
        if ref.kind not in self._models_before:
            self._models_before[ref.kind] = models_before(self.bucket, ref.kind)
        models = self._models_before[ref.kind]
        return [ArtifactRef(ref.kind, ref.identity, model) for model in models if model != ref.model]

    def _look_at(self, ref: ArtifactRef) -> Lookup:
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
        """The artifact; None if it is not in the store, or not intact."""
        return self.look_up(ref).artifact

    def need(self, ref: ArtifactRef) -> Artifact:
        """The artifact. Raises ArtifactDamaged if it is missing or not intact."""
        found = self.look_up(ref)
        if found.artifact is None:
            raise ArtifactDamaged(f"{ref}: {found.problem}", hint="run the rebuild again: it makes the artifact again")
        return found.artifact

    def read(self, artifact: Artifact, path: str) -> bytes:
        """The bytes of one small file. Raises ArtifactDamaged unless their sha256 is that of the manifest."""
        expected = {file.path: file.sha256 for file in artifact.manifest.files}.get(path)
        record = self.bucket.get(f"{artifact.ref.folder}{artifact.manifest.attempt}/{path}")
        if record is None or hashlib.sha256(record.body).hexdigest() != expected:
            raise ArtifactDamaged(f"{artifact.ref}: '{path}' is missing or altered")
        return record.body

    def read_beginning(self, artifact: Artifact, path: str, to: Path, most: int = 64 << 20) -> Path:
        """Write one file as `to`, and return that. One of more than `most` bytes is only begun: the rest is a hole.

        Raises ArtifactDamaged as `read` does; the beginning of a longer file is not compared.
        """
        size = {file.path: file.size for file in artifact.manifest.files}.get(path)
        if size is None or size <= most:
            body = self.read(artifact, path)
        else:
            body = self.bucket.beginning(f"{artifact.ref.folder}{artifact.manifest.attempt}/{path}", most)
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            file.write(body)
            file.truncate(size or len(body))
        return to

    def publish(
        self,
        ref: ArtifactRef,
        identity: Identity,
        folder: Path,
        *,
        inputs: Mapping[str, ArtifactRef],
        producer: Producer,
        model: str = "",
        progress: Progress = lambda done, total: None,
        replaces: str = "",
    ) -> Artifact:
        """Upload every file below `folder` and commit the manifest, which says that this was for `model`.

        If the store already has an intact artifact of this identity, that one counts and our files are garbage. It is
        replaced only if it is the attempt `replaces`, which the caller found when its work began: another attempt
        comes from a successor that took over while this writer was stopped. A damaged artifact is replaced as well.
        The manifest of what is replaced goes to `damaged/`, and ours takes its place only if no other one did.
        What an earlier call for the same folder sent before it failed or was killed is not sent again.
        Raises ArtifactDamaged for a folder with links, StoreUnavailable (retryable) and StoreContended.
        """
        ref = ref.own
        with attempt_for(folder, partial(self._uncommitted, ref)) as attempt:
            files = self._upload(ref, attempt, folder, progress)
            manifest = Manifest(
                kind=ref.kind,
                model=model,
                identity=dict(identity.document),
                inputs={role: str(self._located(input_ref)) for role, input_ref in inputs.items()},
                attempt=attempt.name,
                files=files,
                producer=producer,
                created=datetime.now(UTC),
            )
            # Before the manifest, so that no artifact is without what lineage and nodes need of it.
            note_output(self.bucket, ref, inputs.values())
            if self.sign is not None:
                self.bucket.put(signature_key(ref, attempt.name), self.sign(artifact_statement(ref, manifest)))
            return self._commit(ref, manifest, replaces)

    def _located(self, ref: ArtifactRef) -> ArtifactRef:
        found = self.find(ref)
        return ref if found is None else found.ref

    def _uncommitted(self, ref: ArtifactRef, attempt: str) -> bool:
        """Whether the manifest does not name `attempt`. Files of a committed attempt are never written again."""
        record = self.bucket.get(ref.folder + "manifest.json")
        return record is None or attempt.encode() not in record.body

    def _upload(self, ref: ArtifactRef, attempt: Attempt, folder: Path, progress: Progress) -> tuple[ManifestFile, ...]:
        entries = sorted(folder.rglob("*"))
        if links := [path for path in entries if path.is_symlink()]:
            raise ArtifactDamaged(f"'{links[0].relative_to(folder)}' is a link, and an artifact holds only files")
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
                existing = self._look_at(ref)
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
                return  # garbage collection removes the rest

    def download(self, artifact: Artifact, folder: Path, progress: Progress = lambda done, total: None) -> None:
        """Bring all files to `folder`, each checked against its sha256. `folder` appears whole or not at all.

        Raises ArtifactDamaged if a file is not what the manifest says, and StoreError.
        """
        attempt = f"{artifact.ref.folder}{artifact.manifest.attempt}/"
        with whole_folder(folder, keep_existing=True) as partial:
            wanted = [
                Wanted(attempt + file.path, partial / safe_path(file.path), file.size, file.sha256, file.etag)
                for file in artifact.manifest.files
            ]
            for file in wanted:
                file.path.parent.mkdir(parents=True, exist_ok=True)
            download_files(self.bucket, wanted, ByteCounter(progress, artifact.manifest.size))
