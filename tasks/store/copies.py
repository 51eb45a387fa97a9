"""The copies of artifacts on a node's disk: which of them no release there uses any more.

They lie where `tasks.store.verify.bring` puts them, each below the identity of its artifact.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from infra.errors import ArtifactDamaged
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef
from tasks.store.inventory import read_manifest

_GONE = ".gone"


def put_unused_aside(bucket: Bucket, repositories: Iterable[str], artifacts: Path) -> list[Path]:
    """Folders to remove: all copies but those of these repositories and their engines, renamed so that none is found.

    With what was to be removed earlier. Raises ArtifactDamaged, before anything is renamed, where nobody knows what a
    repository needs.
    """
    used: set[str] = set()
    for reference in repositories:
        ref = ArtifactRef.parse(reference)
        manifest = read_manifest(bucket, ref)
        if manifest is None:
            raise ArtifactDamaged(f"the manifest of {ref} cannot be read: old copies of artifacts stay on this disk")
        used |= {ref.identity, *(ArtifactRef.parse(text).identity for text in manifest.inputs.values())}
    unused: list[Path] = []
    for folder in sorted(artifacts.glob("*")):
        if folder.suffix == _GONE:
            unused.append(folder)
        elif folder.name not in used:
            unused.append(folder.rename(folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{_GONE}")))
    return unused
