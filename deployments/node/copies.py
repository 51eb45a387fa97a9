"""The verified copies of artifacts on a node's disk, with all that is needed to verify them again without the store.

IDENTITY/ATTEMPT/…        the files of a copy, as `tasks.store.verify.bring` puts them
IDENTITY/ATTEMPT.json     its manifest and signature
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infra.errors import EnginehouseError, SignatureRefused
from infra.files import remove_tree, replace_file
from tasks.store.artifact import Artifact, ArtifactRef, Manifest, recorded, signature_key
from tasks.store.artifact_store import ArtifactStore
from tasks.store.copies import put_unused_aside
from tasks.store.identity import Identity
from tasks.store.record import Record
from tasks.store.signing import require_signed_artifact
from tasks.store.verify import bring, problems_in_folder
from tasks.targets.release import Intent

_PARTIAL = "*/*.partial"

_log = logging.getLogger("enginehouse.node")


class _Kept(Record):
    artifact: str
    """Its reference, which says where it lies in the store."""
    manifest: Manifest
    signature: str = ""


@dataclass(frozen=True)
class Copies:
    """The copies in `folder`. With `public_key`, files, none counts that was not signed with the pair of one."""

    store: ArtifactStore
    folder: Path
    public_key: str

    def bring(self, intent: Intent) -> tuple[Path, Path]:
        """The folders of a release's repository and of its engine, every byte checked by this call.

        A copy of just the bytes that the intent names needs no store. Raises as `tasks.store.verify.bring` does.
        """
        if (known := self._on_disk(intent)) is not None:
            return known
        repository, folder = self._bring(intent.artifact)
        _, engine = self._bring(_engine(repository))
        return folder, engine

    def note(self, intent: Intent) -> None:
        """Keep what is needed to verify the copies of a release that an earlier agent has brought."""
        ref = intent.artifact
        if any(self._kept(_engine(repository)) for repository, _ in self._kept(ref)):
            return
        repository = self.store.need(ref)
        for artifact in (repository, self.store.need(_engine(repository))):
            if self._place(artifact).is_dir():
                self._keep(artifact)

    def remove_unused(self, intents: Iterable[Intent]) -> list[Path] | None:
        """Put aside every copy of which no release here is made, and return the folders to remove.

        None while it is unknown of which engine a release is made: it was not brought yet.
        """
        used: set[str] = set()
        for intent in intents:
            ref = intent.artifact
            if not (known := self._kept(ref)):
                return None
            used |= {ref.identity, *(_engine(artifact).identity for artifact, _ in known)}
        return put_unused_aside(used, self.folder)

    def unfinished(self) -> list[Path]:
        """Downloads that a killed agent has left. Only while nothing is downloaded."""
        return list(self.folder.glob(_PARTIAL))

    def _bring(self, ref: ArtifactRef) -> tuple[Artifact, Path]:
        artifact, folder = bring(self.store, ref, self.folder, self.public_key)
        self._keep(artifact)
        return artifact, folder

    def _on_disk(self, intent: Intent) -> tuple[Path, Path] | None:
        """Intact copies of exactly the bytes that were released: a damaged artifact may have been made anew since."""
        for repository, signature in self._kept(intent.artifact):
            for engine, engine_signature in self._kept(_engine(repository)):
                digests = {"repository": repository.manifest.digest, "engine": engine.manifest.digest}
                if Identity(digests).digest == intent.digest and all(
                    self._is_intact(*each) for each in ((repository, signature), (engine, engine_signature))
                ):
                    return self._place(repository), self._place(engine)
        return None

    def _is_intact(self, artifact: Artifact, signature: str) -> bool:
        folder = self._place(artifact)
        if not folder.is_dir() or problems_in_folder(artifact.manifest, folder):
            return False
        try:
            if self.public_key:
                require_signed_artifact(self.public_key, artifact.ref, artifact.manifest, signature.encode() or None)
        except SignatureRefused:
            return False  # the store may have another by now
        return True

    def _place(self, artifact: Artifact) -> Path:
        return self.folder / artifact.ref.identity / artifact.manifest.attempt

    def _file(self, artifact: Artifact) -> Path:
        return self.folder / artifact.ref.identity / f"{artifact.manifest.attempt}.json"

    def _kept(self, ref: ArtifactRef) -> list[tuple[Artifact, str]]:
        found: list[tuple[Artifact, str]] = []
        for file in sorted((self.folder / ref.identity).glob("*.json")):
            try:
                kept = _Kept.model_validate_json(file.read_bytes())
            except (OSError, ValueError, EnginehouseError) as error:
                _log.warning("%s cannot be read: %s", file, error)
                continue
            artifact = Artifact(recorded(kept.artifact), kept.manifest)
            if artifact.ref == ref and self._file(artifact) == file:
                found.append((artifact, kept.signature))
        return found

    def _keep(self, artifact: Artifact) -> None:
        key = signature_key(artifact.ref, artifact.manifest.attempt)
        signed = self.store.bucket.get(key) if self.public_key else None
        kept = _Kept(
            artifact=str(artifact.ref),
            manifest=artifact.manifest,
            signature="" if signed is None else signed.body.decode(),
        )
        replace_file(self._file(artifact), kept.model_dump_json().encode())


def _engine(repository: Artifact) -> ArtifactRef:
    return recorded(repository.manifest.inputs["engine"])


def remove(folder: Path) -> None:
    """Remove a folder that nothing uses any more. What cannot be removed is tried again by the next agent."""
    try:
        remove_tree(folder)
    except OSError:
        _log.exception("%s could not be removed", folder)
