"""The package indexes in which the release watch looks for new versions of TensorRT-LLM."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, not_made
from deployments.doctor.models import models
from infra.package_index import configured, published
from infra.settings import Settings


def _look(settings: Settings) -> Iterator[Finding]:
    if all(model.updates.policy == "pinned" for model in models(settings)):
        yield not_made("no model of this catalogue follows TensorRT-LLM, so no index is asked")
        return
    found = published("tensorrt-llm", configured(settings.watch_indexes))
    yield fine(f"{len(found)} versions of TensorRT-LLM are published, the newest is {found[-1].version}")


CHECK = Check("package-index", "pip's indexes, and those of ENGINEHOUSE_WATCH_INDEXES", _look, within_s=90)
