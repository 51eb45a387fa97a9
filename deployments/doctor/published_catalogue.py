"""The catalogue that `deploy` has published, against the files of this machine."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from infra.errors import SpecError
from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.models.published_catalogue import difference, files_in, published


def _look(settings: Settings) -> Iterator[Finding]:
    if not settings.store:
        yield not_made("no store is named")
        return
    bucket = Bucket.at(settings.store)
    if (known := published(bucket)) is None:
        yield not_made("nobody has published a catalogue: each worker reads the folder that its own settings name")
        return
    try:
        found = difference(bucket, files_in(settings.catalogue))
    except SpecError:
        yield not_made(f"there is no folder {settings.catalogue} to compare it with")
        return
    if found.changes:
        yield wrong(
            "catalogue-differs",
            f"workers that read the store have other files than {settings.catalogue}. {found}",
            "enginehouse deploy",
        )
    else:
        yield fine(f"{known} has the files of {settings.catalogue}")


CHECK = Check("published-catalogue", "the catalogue that workers find in the store", _look)
