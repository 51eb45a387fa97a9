"""Which sources an event from outside may name for a model."""

from __future__ import annotations

from infra.errors import SourceError
from tasks.models.source_uri import HubUri, S3Uri, glob_match, parse_source
from tasks.models.spec import Model


def accepted(model: Model, uri: str) -> bool:
    """Whether an event may name `uri` as the source of `model`: it is hf:// or s3://, and `accepts` lists it."""
    try:
        parsed = parse_source(uri)
    except SourceError:
        return False
    return isinstance(parsed, HubUri | S3Uri) and any(glob_match(pattern, str(parsed)) for pattern in model.accepts)
