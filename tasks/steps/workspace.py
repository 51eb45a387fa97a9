"""Local folders of one engine's steps, so that a step that is tried again finds what was finished.

Each engine has a workspace of its own, used by whoever holds its lease. A folder appears whole or not at all: it
is made beside its place and renamed. It is dropped only when the store holds the artifact, verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.files import whole_folder
from infra.progress import Progress
from tasks.store.artifact import ArtifactRef, ArtifactStore, Producer


@dataclass(frozen=True)
class Workspace:
    root: Path

    def folder(self, ref: ArtifactRef) -> Path:
        """Where a finished local copy of `ref` lies, if there is one."""
        return self.root / ref.kind / ref.identity

    def make(self, ref: ArtifactRef, work: Callable[[Path], object]) -> Path:
        """Let `work` fill a fresh folder, then put it in place. What a killed or failed try left is removed."""
        folder = self.folder(ref)
        if folder.is_dir():
            return folder
        with whole_folder(folder, keep_existing=True) as partial:
            work(partial)
        return folder

    def scratch(self) -> Path:
        """A fresh folder for what a step's tools leave beside their output."""
        folder = self.root / "scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def note(self, ref: ArtifactRef, producer: Producer) -> None:
        """Keep who made the local copy of `ref` for whoever uploads it, perhaps in a later try."""
        self._note(ref).write_text(producer.model_dump_json())

    def noted(self, ref: ArtifactRef) -> Producer:
        return Producer.model_validate_json(self._note(ref).read_text())

    def _note(self, ref: ArtifactRef) -> Path:
        folder = self.folder(ref)
        return folder.with_name(f"{folder.name}.producer.json")

    def bring(self, store: ArtifactStore, ref: ArtifactRef, progress: Progress) -> Path:
        """The local copy of `ref`, downloaded and verified where there is none."""
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
        """Remove everything, with what killed tries left."""
        shutil.rmtree(self.root, ignore_errors=True)
