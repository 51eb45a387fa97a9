"""`enginehouse verify` and `sign`: check every byte of an artifact, or of a release's repository and engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from infra.errors import ArtifactDamaged, SignatureRefused, UsageError
from infra.progress import Progress
from infra.s3.bucket import Bucket
from tasks.store.artifact import Artifact, ArtifactRef, signature_key
from tasks.store.inventory import recorded_artifact
from tasks.store.signing import artifact_statement, signer
from tasks.store.verify import check_signature, problems_in_folder, problems_in_store
from tasks.targets.proof import PROOF, problems_of_proof, sign_proof
from tasks.targets.references import Reference, ReleaseRef, release_of
from tasks.targets.target import Target


@dataclass(frozen=True)
class Verification:
    """What was found of one artifact. `size` in bytes; `signed`: its signature was checked with a public key."""

    artifact: str
    files: int
    size: int
    signed: bool
    problems: tuple[str, ...]

    @property
    def word(self) -> str:
        """The verdict in a few words."""
        if self.problems:
            return "; ".join(self.problems)
        return "intact, and signed" if self.signed else "intact"

    def document(self) -> dict[str, JsonValue]:
        """What `enginehouse verify --json` prints of it."""
        return {**asdict(self), "intact": not self.problems}


def verify(
    bucket: Bucket, reference: Reference, node: Path | None, public_keys: str, progress: Progress
) -> list[Verification]:
    """Read every byte of what `reference` names: in the store, or below the folder of a `node` on this disk.

    With `public_keys` (files, as words) signatures are checked too, for a release also that of its intent. The proof of
    a release, if it has one, is compared with its records and artifacts.

    What is damaged or not signed is in the verdicts. Raises UsageError, code `not-on-node` or `release-missing`,
    ArtifactDamaged if a manifest is missing or its files were collected, and StoreError.
    """
    verdicts: list[Verification] = []
    for artifact in _artifacts(bucket, reference):
        if node is None:
            problems = problems_in_store(bucket, artifact, progress)
        else:
            folder = node / "artifacts" / artifact.ref.identity / artifact.manifest.attempt
            if not folder.is_dir():
                raise UsageError(
                    f"{artifact.ref} is not on this node: {folder} does not exist",
                    hint="--node takes ENGINEHOUSE_HOME/node of a node that has the release loaded",
                    code="not-on-node",
                )
            problems = problems_in_folder(artifact.manifest, folder, progress)
        try:
            check_signature(bucket, artifact, public_keys)
        except SignatureRefused as error:
            problems = [*problems, str(error)]
        manifest = artifact.manifest
        verdicts.append(
            Verification(str(artifact.ref), len(manifest.files), manifest.size, bool(public_keys), tuple(problems))
        )
    if public_keys and not isinstance(reference, ArtifactRef):
        intent = release_of(bucket, reference)
        problems = []
        try:
            Target(bucket, reference.target).trusted_intent(intent.model, intent.release, public_keys)
        except SignatureRefused as error:
            problems = [str(error)]
        verdicts.append(
            Verification(f"{reference.target}/{intent.model}@{intent.release}", 1, 0, True, tuple(problems))
        )
    if node is None and not isinstance(reference, ArtifactRef):
        intent = release_of(bucket, reference)
        target = Target(bucket, reference.target)
        found = problems_of_proof(target, intent, public_keys)
        if found is not None:
            name = f"{reference.target}/{intent.model}@{intent.release}/{PROOF}"
            verdicts.append(Verification(name, 1, 0, bool(public_keys), tuple(found)))
    return verdicts


def sign(bucket: Bucket, reference: Reference, key: str, progress: Progress) -> Iterator[ArtifactRef | ReleaseRef]:
    """Sign what `reference` names, if it is intact in the store; yields each thing once it is signed.

    Of a release that is its repository, its engine, its proof where it has one, and last its intent. `key` is the file
    of a private key. Raises ArtifactDamaged and SettingsError.
    """
    make = signer(key)
    assert make is not None  # `key` is not empty
    for artifact in _artifacts(bucket, reference):
        if problems := problems_in_store(bucket, artifact, progress):
            raise ArtifactDamaged(f"{artifact.ref} is not signed: {'; '.join(problems)}")
        bucket.put(
            signature_key(artifact.ref, artifact.manifest.attempt),
            make(artifact_statement(artifact.ref, artifact.manifest)),
        )
        yield artifact.ref
    if not isinstance(reference, ArtifactRef):
        intent = release_of(bucket, reference)
        target = Target(bucket, reference.target, sign=make)
        sign_proof(target, intent)
        target.sign_intent(intent.model, intent.release, make)
        yield ReleaseRef(reference.target, intent.model, intent.release)


def _artifacts(bucket: Bucket, reference: Reference) -> Iterator[Artifact]:
    """The artifact itself; for a release what a node needs, its repository and engine."""
    if isinstance(reference, ArtifactRef):
        yield _artifact(bucket, reference)
        return
    repository = _artifact(bucket, release_of(bucket, reference).artifact)
    yield repository
    yield _artifact(bucket, ArtifactRef.parse(repository.manifest.inputs["engine"]))


def _artifact(bucket: Bucket, ref: ArtifactRef) -> Artifact:
    found = recorded_artifact(bucket, ref)
    if found is None or found.manifest.state == "collected":
        problem = "it has no readable manifest" if found is None else "its files were collected"
        raise ArtifactDamaged(f"{ref} cannot be verified: {problem}", hint="run its rebuild again")
    return found
