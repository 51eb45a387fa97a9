"""The copies of artifacts on a node's disk, and which of them none of its releases uses any more.

`tasks.store.verify.bring` puts each copy into a folder named by the identity of its artifact.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path

from infra.errors import ArtifactDamaged
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, recorded
from tasks.store.inventory import read_manifest

_GONE = ".gone"


def put_unused_aside(bucket: Bucket, repositories: Iterable[str], artifacts: Path) -> list[Path]:
    """Rename every copy that is not of these repositories or their engines, and return the folders to remove.

    A renamed copy is not found any more, so removing it may take its time. Folders that an earlier call renamed are
    returned too. Raises ArtifactDamaged, before anything is renamed, if a repository's manifest cannot be read.
    """
    used: set[str] = set()
    for reference in repositories:
        ref = recorded(reference)
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
