"""Local folders for the steps of one engine, so that a step that is tried again finds what was finished.

Each engine has a workspace of its own, which one process at a time uses (`claim`). A folder appears whole or not at
all: it is made beside its place and then renamed. It is removed only when the store holds the artifact, verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.files import whole_folder
from infra.progress import Progress
from tasks.steps.claim import claimed, release
from tasks.store.artifact import ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore


@dataclass(frozen=True)
class Workspace:
    """The folders below `root`: one for each artifact, and one for scratch files.

    While another process of this machine uses `root`, they are below a fresh folder beside it.
    """

    root: Path

    def folder(self, ref: ArtifactRef) -> Path:
        """The place of a finished local copy of `ref`, whether there is one or not."""
        return claimed(self.root) / ref.kind / ref.identity

    def make(self, ref: ArtifactRef, work: Callable[[Path], object]) -> Path:
        """Let `work` fill an empty folder and put it in place, unless it exists. A failed try leaves nothing behind."""
        folder = self.folder(ref)
        if folder.is_dir():
            return folder
        with whole_folder(folder, keep_existing=True) as partial:
            work(partial)
        return folder

    def scratch(self) -> Path:
        """An empty folder for what a step's tools leave beside their output."""
        folder = claimed(self.root) / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def note(self, ref: ArtifactRef, producer: Producer) -> None:
        """Keep who made the local copy of `ref`, for its upload, which may happen in a later try."""
        self._note(ref).write_text(producer.model_dump_json())

    def noted(self, ref: ArtifactRef) -> Producer:
        """Who made the local copy of `ref`."""
        return Producer.model_validate_json(self._note(ref).read_text())

    def _note(self, ref: ArtifactRef) -> Path:
        folder = self.folder(ref)
        return folder.with_name(f"{folder.name}.producer.json")

    def bring(self, store: ArtifactStore, ref: ArtifactRef, progress: Progress) -> Path:
        """Return the local copy of `ref`, downloaded and verified if there was none. Raises StoreError."""
        folder = self.folder(ref)
        if not folder.is_dir():
            artifact = store.need(ref)
            store.download(artifact, folder, progress)
            self.note(ref, artifact.manifest.producer)
        return folder

    def drop(self, ref: ArtifactRef) -> None:
        """Remove the local copy of `ref`."""
        shutil.rmtree(self.folder(ref), ignore_errors=True)

    def remove(self) -> None:
        """Remove the whole workspace, with what killed tries left."""
        shutil.rmtree(claimed(self.root), ignore_errors=True)
        release(self.root)
