"""The models whose files can be read here. What is wrong with the others is the finding of one check alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from infra.errors import SpecError
from infra.settings import Settings
from tasks.models.catalogue import catalogue_files, load_model
from tasks.models.spec import Model


def files(settings: Settings) -> list[Path]:
    """The models' files; none if there is no such folder."""
    folder = settings.catalogue
    return [*catalogue_files(folder)] if folder.is_dir() else []


def models(settings: Settings) -> Iterator[Model]:
    for path in files(settings):
        with suppress(SpecError):
            yield load_model(path)
