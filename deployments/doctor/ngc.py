"""NVIDIA's registry NGC: every model of it that the catalogue names."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, not_made
from deployments.doctor.sources import readable, sources
from infra.settings import Settings
from tasks.models.source_uri import NgcUri


def _look(settings: Settings) -> Iterator[Finding]:
    found = sources(settings, NgcUri)
    if found:
        yield from readable(found, "https://api.ngc.nvidia.com")
    else:
        yield not_made("no model of this catalogue comes from NGC")


CHECK = Check("ngc", "NVIDIA's NGC: the key, and the models that the catalogue names", _look, within_s=60)
