"""What belongs to a release: the files that a node needs of it, and the artifacts that they were made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from infra.errors import ArtifactDamaged
from infra.s3.bucket import Bucket
from tasks.export.model_card import ModelCard, model_card
from tasks.store.artifact import Artifact, ArtifactRef, recorded
from tasks.store.artifact_store import ArtifactStore
from tasks.store.inventory import manifests
from tasks.store.verify import check_signature
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target


@dataclass(frozen=True)
class ReleaseFile:
    """One file. `path` is its path in the export; `key` and `etag` are those that it has in the store."""

    path: str
    size: int
    sha256: str
    key: str
    etag: str


@dataclass(frozen=True)
class Contents:
    """A release with its artifacts, both intact in the store when they were looked up."""

    intent: Intent
    result: Result | None
    """The verdict of its gates; None if it has none yet."""
    repository: Artifact
    engine: Artifact
    made_of: tuple[Artifact, ...]
    """Manifests of what those two were made from, the nearest first. Their files may be gone."""
    card: ModelCard

    @property
    def name(self) -> str:
        return f"{self.intent.model}@{self.intent.release}"

    @property
    def files(self) -> tuple[ReleaseFile, ...]:
        """Every file, below `engine/` and `repository/`."""
        return tuple(file for artifact in (self.engine, self.repository) for file in _files(artifact))

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All of them, the repository first."""
        return self.repository, self.engine, *self.made_of

    @property
    def snapshots(self) -> tuple[Artifact, ...]:
        return tuple(each for each in self.made_of if each.ref.kind == "snapshot")

    @property
    def weights(self) -> Artifact | None:
        """The snapshot of the model's source: not that of an adapter or a draft. None if no manifest names one."""
        return _weights(self.engine, self.made_of)


def contents_of(target: Target, model: str, release: int, public_keys: str) -> Contents:
    """Read what a release is. With `public_keys`, files as words, only one that is signed with one of them is read.

    Raises UsageError `release-missing`, ArtifactDamaged for a release whose files are missing, altered or collected,
    SignatureRefused, and StoreError.
    """
    store = ArtifactStore(target.bucket)
    intent = target.trusted_intent(model, release, public_keys)
    repository = store.need(intent.artifact)
    if "engine" not in repository.manifest.inputs:
        raise ArtifactDamaged(
            f"the manifest of {repository.ref} names no engine",
            hint="run the rebuild again: it makes the artifact again",
            code="record-invalid",
        )
    engine = store.need(recorded(repository.manifest.inputs["engine"]))
    for artifact in (repository, engine):
        check_signature(target.bucket, artifact, public_keys)
    made_of = tuple(_made_of(target.bucket, repository, engine))
    return Contents(
        intent,
        target.result(model, release),
        repository,
        engine,
        made_of,
        model_card(store, _weights(engine, made_of)),
    )


def _files(artifact: Artifact) -> Iterator[ReleaseFile]:
    attempt = f"{artifact.ref.folder}{artifact.manifest.attempt}/"
    for file in sorted(artifact.manifest.files, key=lambda file: file.path):
        yield ReleaseFile(f"{artifact.ref.kind}/{file.path}", file.size, file.sha256, attempt + file.path, file.etag)


def _made_of(bucket: Bucket, *artifacts: Artifact) -> Iterator[Artifact]:
    """Each artifact that these were made from, once, as far as there are manifests."""
    known = {artifact.ref for artifact in artifacts}
    waiting = [ref for artifact in artifacts for ref in _inputs(artifact)]
    while waiting := [ref for ref in dict.fromkeys(waiting) if ref not in known]:
        known.update(waiting)
        read = [Artifact(ref, manifest) for ref, manifest in manifests(bucket, waiting).items()]
        yield from read
        waiting = [ref for artifact in read for ref in _inputs(artifact)]


def _inputs(artifact: Artifact) -> Iterator[ArtifactRef]:
    return map(ArtifactRef.parse, artifact.manifest.inputs.values())


def _weights(engine: Artifact, made_of: tuple[Artifact, ...]) -> Artifact | None:
    there = {artifact.ref: artifact for artifact in made_of}
    found: Artifact | None = engine
    for role in ("checkpoint", "snapshot"):
        named = None if found is None else found.manifest.inputs.get(role)
        found = None if named is None else there.get(ArtifactRef.parse(named))
    return found
