"""The catalogue in the store, which reaches workers without a checkout: `enginehouse deploy` puts it there.

catalogue/HEX.json         the files, by their names; created once, under the digest of them all
catalogue/published.json   which of these counts; moved with `If-Match`
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from infra.errors import ArtifactDamaged, SettingsError, SpecError
from infra.files import whole_folder
from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.models.catalogue import catalogue_files
from tasks.store.cell import Cell, WriteOnce
from tasks.store.identity import canonical
from tasks.store.record import Record
from tasks.targets.move import mover

FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\]+\.ya?ml$")]


class CatalogueFiles(Record):
    """The text of each file, by its name."""

    files: dict[FileName, str]

    @property
    def digest(self) -> str:
        """The sha256 of names and texts, in hexadecimal digits."""
        return hashlib.sha256(canonical(self.files)).hexdigest()


class PublishedCatalogue(Record):
    """Which files count."""

    digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """Empty if nobody has published any."""
    published: datetime = Field(default_factory=lambda: datetime.now(UTC))
    by: str = Field(default_factory=mover)

    def __str__(self) -> str:
        return f"the store, published by {self.by} at {self.published:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Publication:
    """What a publication changes, file by file: `created`, `changed` or `removed`."""

    digest: str
    changes: Mapping[str, str]

    def __str__(self) -> str:
        changed = ", ".join(f"{change} {name}" for name, change in self.changes.items())
        return f"catalogue {self.digest[:12]}: {changed or 'unchanged'}"


@dataclass(frozen=True)
class CatalogueInUse:
    """The folder that a run reads its models from, and the digest of what it reads there."""

    folder: Path
    digest: str
    what: str

    def __str__(self) -> str:
        return f"{self.what}, {self.digest[:12]}"


def files_in(folder: Path, model: str = "") -> CatalogueFiles:
    """The models' files of a folder, or those of one model alone. What is no readable text is left out.

    Raises SpecError if there is no folder.
    """
    if not folder.is_dir():
        raise SpecError(f"there is no catalogue at {folder}", hint="A catalogue is a folder of NAME.yaml files.")
    texts: dict[str, str] = {}
    for path in catalogue_files(folder):
        if model not in ("", path.stem):
            continue
        with suppress(OSError, UnicodeDecodeError):
            texts[path.name] = path.read_text("utf-8")
    return CatalogueFiles(files=texts)


def published(bucket: Bucket) -> PublishedCatalogue | None:
    """Which files count; None if nobody has published any."""
    found = _published(bucket).read()[0]
    return found if found.digest else None


def difference(bucket: Bucket, files: CatalogueFiles) -> Publication:
    """What publishing these files would change."""
    current = published(bucket)
    stored = None if current is None else _stored(bucket, current.digest).read()
    before = {} if stored is None else stored.files
    fresh = {name for name, text in files.files.items() if before.get(name) != text}
    changes = {name: "changed" if name in before else "created" for name in fresh}
    changes |= dict.fromkeys(before.keys() - files.files.keys(), "removed")
    return Publication(files.digest, dict(sorted(changes.items())))


def publish(bucket: Bucket, files: CatalogueFiles) -> None:
    """Make these files the ones that workers read. Killed at any time, it leaves those of before, or these."""
    _stored(bucket, files.digest).create(files)
    fresh = PublishedCatalogue(digest=files.digest)
    _published(bucket).move(lambda old: old if old.digest == fresh.digest else fresh)


def folder_of(settings: Settings) -> Path:
    """The folder of the models' files that this machine's runs read.

    Raises SettingsError `catalogue-unpublished` if they are those of the store, and there are none; and StoreError.
    """
    return settings.catalogue if settings.catalogue_from == "folder" else _brought(settings)[0]


def in_use(settings: Settings, model: str = "") -> CatalogueInUse:
    """The same with what is in it. Raises SpecError too, if there is no such folder.

    Who reads one `model` alone is told of its file: of a folder, no other file is read for that.
    """
    if settings.catalogue_from == "store":
        folder, current = _brought(settings)
        return CatalogueInUse(folder, current.digest, f"the models' files are those of {current}")
    folder = settings.catalogue
    if model:
        return CatalogueInUse(folder, files_in(folder, model).digest, f"the file of {model} is that of {folder}")
    return CatalogueInUse(folder, files_in(folder).digest, f"the models' files are those of {folder}")


def _brought(settings: Settings) -> tuple[Path, PublishedCatalogue]:
    """The published catalogue, and the folder on this machine that has its files."""
    bucket = Bucket.at(settings.store)
    current = published(bucket)
    if current is None:
        raise SettingsError(
            f"nobody has published a catalogue in {settings.store}",
            hint="enginehouse deploy publishes the folder that ENGINEHOUSE_CATALOGUE names",
            code="catalogue-unpublished",
        )
    folder = settings.home / "catalogues" / current.digest
    if not folder.is_dir():
        with whole_folder(folder, keep_existing=True) as partial:
            for name, text in _files(bucket, current.digest).items():
                (partial / name).write_text(text, "utf-8")
    return folder, current


def _published(bucket: Bucket) -> Cell[PublishedCatalogue]:
    return Cell(bucket, "catalogue/published.json", PublishedCatalogue())


def _stored(bucket: Bucket, digest: str) -> WriteOnce[CatalogueFiles]:
    return WriteOnce(bucket, f"catalogue/{digest}.json", CatalogueFiles)


def _files(bucket: Bucket, digest: str) -> dict[FileName, str]:
    found = _stored(bucket, digest).read()
    if found is None or found.digest != digest:
        became = "gone" if found is None else "not those that were published"
        raise ArtifactDamaged(
            f"the files of the published catalogue {digest[:12]} are {became}",
            hint=f"delete catalogue/{digest}.json if it is there; enginehouse deploy publishes them again",
            code="catalogue-damaged",
        )
    return found.files
