"""Which sources an event from outside may name for a model."""

from __future__ import annotations

from infra.errors import SourceError
from tasks.models.source_uri import FileUri, PipUri, glob_match, parse_source
from tasks.models.spec import Model


def accepted(model: Model, uri: str) -> bool:
    """Whether an event may name `uri` as the source of `model`: `accepts` lists it, and it is no file:// or pip://."""
    try:
        parsed = parse_source(uri)
    except SourceError:
        return False
    if isinstance(parsed, FileUri | PipUri):
        return False
    return any(glob_match(pattern, str(parsed)) for pattern in model.accepts)
