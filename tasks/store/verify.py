"""Every byte of an artifact compared with its manifest, in the store or on a node's disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from infra.errors import ArtifactDamaged
from infra.files import remove_tree
from infra.progress import ByteCounter, Progress
from infra.s3.bucket import Bucket
from tasks.store.artifact import Artifact, ArtifactRef, Manifest, ManifestFile, signature_key
from tasks.store.artifact_store import ArtifactStore
from tasks.store.signing import require_signed_artifact

_AT_ONCE = min(4, os.cpu_count() or 1)
"""Files read at the same time. Hashing keeps a core busy, and four readers keep a disk or a server busy."""


def problems_in_store(bucket: Bucket, artifact: Artifact, progress: Progress = lambda done, total: None) -> list[str]:
    """What differs from the manifest, file by file; empty if nothing does. Reads every byte.

    `progress` gets bytes. Raises StoreError if the store cannot be read.
    """
    attempt = f"{artifact.ref.folder}{artifact.manifest.attempt}/"
    named = {file.path for file in artifact.manifest.files}
    extra = [entry.key.removeprefix(attempt) for entry in bucket.list(attempt)]

    def look(file: ManifestFile, advance: Callable[[int], None]) -> str:
        return _verdict(file, bucket.digest(attempt + file.path, advance))

    found = _each_file(artifact.manifest, look, progress)
    return found + [f"'{path}' is extra: the manifest does not name it" for path in sorted(set(extra) - named)]


def problems_in_folder(manifest: Manifest, folder: Path, progress: Progress = lambda done, total: None) -> list[str]:
    """The same for a folder on this disk. A link is a problem too."""
    named = {file.path for file in manifest.files}
    entries = {PurePosixPath(path.relative_to(folder)).as_posix(): path for path in folder.rglob("*")}
    links = {name for name, path in entries.items() if path.is_symlink()}
    extra = {name for name, path in entries.items() if not path.is_dir()} - named - links

    def look(file: ManifestFile, advance: Callable[[int], None]) -> str:
        path = folder / file.path
        return "" if file.path in links else _verdict(file, _digest(path, advance) if path.is_file() else None)

    found = _each_file(manifest, look, progress)
    found += [f"'{name}' is a link, and an artifact holds only files" for name in sorted(links)]
    return found + [f"'{name}' is extra: the manifest does not name it" for name in sorted(extra)]


def _each_file(
    manifest: Manifest, look: Callable[[ManifestFile, Callable[[int], None]], str], progress: Progress
) -> list[str]:
    advance = ByteCounter(progress, manifest.size)

    def verdict(file: ManifestFile) -> str:
        return look(file, advance)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [problem for problem in pool.map(verdict, manifest.files) if problem]


def _verdict(file: ManifestFile, sha256: str | None) -> str:
    if sha256 is None:
        return f"'{file.path}' is missing"
    if sha256 != file.sha256:
        return f"'{file.path}' was altered: its sha256 is {sha256}, and the manifest says {file.sha256}"
    return ""


def _digest(path: Path, advance: Callable[[int], None]) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()


def check_signature(bucket: Bucket, artifact: Artifact, public_keys: str) -> None:
    """Raises SignatureRefused if `public_keys` are set and the artifact is not signed with the pair of one of them."""
    if public_keys:
        record = bucket.get(signature_key(artifact.ref, artifact.manifest.attempt))
        require_signed_artifact(public_keys, artifact.ref, artifact.manifest, None if record is None else record.body)


def bring(store: ArtifactStore, ref: ArtifactRef, artifacts: Path, public_key: str = "") -> tuple[Artifact, Path]:
    """The artifact and its folder below `artifacts` on this disk, with every byte checked by this call.

    It downloads the artifact if there is no copy. A copy that differs from its manifest is renamed to
    `ATTEMPT.damaged`, in place of an earlier one, and the next call downloads it again.
    Raises ArtifactDamaged (retryable for such a copy), SignatureRefused and StoreError.
    """
    artifact = store.need(ref)
    check_signature(store.bucket, artifact, public_key)
    folder = artifacts / ref.identity / artifact.manifest.attempt
    if not folder.is_dir():
        store.download(artifact, folder)
        return artifact, folder
    if problems := problems_in_folder(artifact.manifest, folder):
        aside = folder.with_name(f"{folder.name}.damaged")
        remove_tree(aside)
        folder.rename(aside)
        raise ArtifactDamaged(
            f"the copy of {ref} on this disk differs from its manifest: {'; '.join(problems)}",
            hint="it is downloaded again; look at the disk",
            retryable=True,
        )
    return artifact, folder
