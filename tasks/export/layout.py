"""An OCI image layout on this disk, written so that nobody takes one for whole that is not.

FOLDER/oci/oci-layout
FOLDER/oci/blobs/sha256/…     each blob under its own digest
FOLDER/oci/index.json         written last; without it no client finds an image

The manifest of the release comes first: by it a later call knows that what it finds is the same release, begun.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UsageError
from infra.files import replace_file
from infra.progress import ByteCounter, Progress
from infra.s3.bucket import Bucket
from infra.s3.download import Wanted, download_files
from tasks.export.contents import ReleaseFile
from tasks.export.oci import LAYOUT, Image, index

_AT_ONCE = 4
"""Files that are hashed at the same time: as many readers keep a disk busy."""


@dataclass(frozen=True)
class Layout:
    """The layout of one release, in `folder/oci`. What else is said of the release lies beside it in `folder`."""

    folder: Path
    image: Image

    @property
    def _root(self) -> Path:
        return self.folder / "oci"

    @property
    def _blobs(self) -> Path:
        return self._root / "blobs" / "sha256"

    def begin(self) -> None:
        """Make the folder, or take up the one that an earlier call left. Raises UsageError, code `export-folder`."""
        manifest = self.image.manifest
        first = self._blobs / manifest.descriptor.sha256
        try:
            if not first.is_file() and self.folder.exists() and any(each.is_file() for each in _all(self.folder)):
                raise _in_the_way(self.folder, "it holds something else than this release")
            self._blobs.mkdir(parents=True, exist_ok=True)
            (self._root / "index.json").unlink(missing_ok=True)
            replace_file(first, manifest.body)
            (self._root / "oci-layout").write_bytes(LAYOUT)
        except OSError as error:
            raise _in_the_way(self.folder, error.strerror or str(error)) from error

    def bring(self, bucket: Bucket, files: Sequence[ReleaseFile], progress: Progress) -> None:
        """Have every file of the release among the blobs. Those that are there and right stay.

        Each is hashed while it arrives, and none is in memory whole. `progress` gets bytes. Raises ArtifactDamaged for
        a file that is not what its manifest says, StoreError (`disk-full`, `store-missing`), and StoreUnavailable.
        """
        by_digest = {file.sha256: file for file in files}
        count = ByteCounter(progress, sum(file.size for file in by_digest.values()))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            there = list(pool.map(self._is_there, by_digest.values()))
        missing: list[ReleaseFile] = []
        for file, is_there in zip(by_digest.values(), there, strict=True):
            if is_there:
                count(file.size)
            else:
                (self._blobs / file.sha256).unlink(missing_ok=True)
                missing.append(file)
        download_files(
            bucket,
            [Wanted(file.key, self._blobs / file.sha256, file.size, file.sha256, file.etag) for file in missing],
            count,
        )

    def finish(self, tag: str, referring: Sequence[Image]) -> None:
        """Write the small blobs and the index, after which the layout is whole. Blobs of earlier calls go."""
        images = (self.image, *referring)
        for image in images:
            for blob in (image.manifest, *image.blobs):
                replace_file(self._blobs / blob.descriptor.sha256, blob.body)
        named = frozenset[str]().union(*(image.named for image in images))
        for left in self._blobs.iterdir():
            if left.name not in named:
                left.unlink()
        replace_file(self._root / "index.json", index(self.image, tag, referring))

    def _is_there(self, file: ReleaseFile) -> bool:
        path = self._blobs / file.sha256
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _all(folder: Path) -> Iterable[Path]:
    return folder.rglob("*") if folder.is_dir() else [folder]


def _in_the_way(folder: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot export to {folder}: {why}", hint="name another folder with --to, or remove it", code="export-folder"
    )
