"""The models' files of this machine."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, wrong
from deployments.doctor.models import files
from infra.errors import SpecError
from infra.settings import Settings
from tasks.models.catalogue import load_model


def _look(settings: Settings) -> Iterator[Finding]:
    if not settings.catalogue.is_dir():
        yield wrong(
            "catalogue-missing",
            f"there is no folder {settings.catalogue}",
            "export ENGINEHOUSE_CATALOGUE=FOLDER, where the models' files are",
        )
        return
    sound = 0
    for path in files(settings):
        try:
            load_model(path)
            sound += 1
        except SpecError as error:
            yield wrong(error.code, error.message, f"correct it, then: enginehouse plan {path.stem} --offline")
    yield fine(f"{sound} models can be read in {settings.catalogue}")


CHECK = Check("catalogue", "the models' files that this machine reads", _look)
