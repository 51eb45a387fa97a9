"""Which catalogue the workers read: another one than here makes them build something else, or find no model.

No record says it for a worker elsewhere. Of the embedded stack's workers their own environment does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from deployments.stack.home import Home
from deployments.stack.services import WORKERS
from infra.settings import Settings


def _look(settings: Settings) -> Iterator[Finding]:
    home = Home(settings.home)
    running = {name: process for name in WORKERS if (process := home.find(name)) is not None}
    for name, process in running.items():
        try:
            theirs = Path(process.environ().get("ENGINEHOUSE_CATALOGUE") or Settings.catalogue)
        except psutil.Error as error:
            yield not_made(f"the environment of {name} cannot be read: {error}")
            continue
        if theirs == settings.catalogue:
            yield fine(f"{name} reads {theirs}, as this machine does")
        else:
            yield wrong(
                "catalogue-other",
                f"{name} reads {theirs}, and this machine reads {settings.catalogue}",
                "enginehouse down && enginehouse up",
            )
    if not running:
        yield not_made(
            "no worker of an embedded stack runs here, and workers elsewhere write no record of what they read: look "
            f"there yourself for the files of {settings.catalogue}"
        )


CHECK = Check("workers-catalogue", "the catalogue that the workers read", _look)
