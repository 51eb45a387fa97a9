"""Weights of an event whose release nobody approved: later rebuilds do not bring them to a person again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from infra.errors import UsageError
from tasks.finetuned.records import settle, waiting_from
from tasks.models.catalogue import catalogue_entry
from tasks.targets.target import Target


def note_rejected(
    target: Target, catalogue: Path, model: str, release: int, parameters: Mapping[str, JsonValue]
) -> None:
    """Note the weights of a release that was rejected, or that timed out, as refused.

    Not if `parameters`, those of its rebuild, have another recipe or version than the model's file, which may be to
    blame. A model's file that is gone or broken takes no weights of events.
    """
    if parameters.get("recipe") or parameters.get("runtime"):
        return
    with suppress(UsageError):
        source = target.intent(model, release).source
        for weights in waiting_from(target.bucket, catalogue_entry(catalogue, model), source):
            settle(target.bucket, weights, "refused")
