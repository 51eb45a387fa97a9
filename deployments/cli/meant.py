"""Which model or target somebody meant whose name is nowhere: asked once a command has failed for it, and never before.

A mistyped name is first told apart from a right one here, since a model that is in no file may still be served.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress

from infra.errors import EnginehouseError
from infra.nearest import did_you_mean
from infra.settings import Settings

_OF_A_NAME = (
    *("model-missing", "release-missing", "reference-unknown", "approval-missing", "triton-unknown-model"),
    "run-missing",
)
"""Errors of who names a model, or the target that it is on."""


def hint(error: EnginehouseError, options: argparse.Namespace, settings: Settings) -> str:
    """The hint of the error, with the nearest name before it if a name that was typed is none."""
    return f"{_question(error, options, settings)}{error.hint}"


def _question(error: EnginehouseError, options: argparse.Namespace, settings: Settings) -> str:
    if error.code not in _OF_A_NAME:
        return ""
    typed: str = getattr(options, "target", None) or ""
    if typed and typed not in (targets := set(_targets(settings))) and (meant := did_you_mean(typed, targets)):
        return meant
    name: str = getattr(options, "model", "") or getattr(options, "reference", "") or getattr(options, "release", "")
    model = str(name).partition("@")[0]
    models = {*_in_files(settings), *_released(settings, typed or settings.target)}
    return "" if not model or model in models else did_you_mean(model, models)


def _in_files(settings: Settings) -> Iterator[str]:
    from tasks.models.catalogue import catalogue_files

    with suppress(OSError):
        yield from (path.stem for path in catalogue_files(settings.catalogue))


def _targets(settings: Settings) -> Iterator[str]:
    from infra.s3.bucket import Bucket
    from tasks.targets.target import targets

    with suppress(EnginehouseError):  # who cannot ask the store gets the error without a question
        yield from (target.name for target in targets(Bucket.at(settings.store)))


def _released(settings: Settings, target: str) -> Iterator[str]:
    from infra.s3.bucket import Bucket
    from tasks.targets.target import Target, released_models

    with suppress(EnginehouseError):
        yield from released_models(Target(Bucket.at(settings.store), target))
