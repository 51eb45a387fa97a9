"""Whether sources of one kind can be read from here: asked as a rebuild would, without a download."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Finding, fine, wrong
from deployments.doctor.models import models
from infra.errors import EnginehouseError, SourceUnavailable
from infra.settings import Settings
from tasks.models.source import Source
from tasks.models.source_uri import HubUri, NgcUri, parse_source
from tasks.sources.dispatch import resolve
from tasks.sources.resolved import NO_ACCESS, Access

_MOST = 20
"""Sources that are asked for, so that a large catalogue takes no minutes."""


def sources(settings: Settings, scheme: type[HubUri] | type[NgcUri]) -> dict[str, Source]:
    """The sources of this scheme, by address."""
    found = (model.source for model in models(settings))
    return {source.uri: source for source in found if isinstance(parse_source(source.uri), scheme)}


def readable(found: dict[str, Source], address: str, access: Access = NO_ACCESS) -> Iterator[Finding]:
    """Ask for each source what a rebuild pins. A server at `address` that does not answer is asked no more."""
    for uri, source in list(found.items())[:_MOST]:
        try:
            resolve(source, access)
            yield fine(f"{uri} can be read")
        except SourceUnavailable as error:
            yield wrong(error.code, error.message, f"curl -sSI {address} says why this machine does not reach it")
            return
        except EnginehouseError as error:
            yield wrong(error.code, error.message, error.hint)
