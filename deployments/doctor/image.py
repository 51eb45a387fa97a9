"""The list of container images, and whether it has each TensorRT-LLM that the catalogue names."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import Version

from deployments.doctor.check import Check, Finding, fine, notice
from deployments.doctor.models import models
from infra.images import images
from infra.settings import Settings


def _look(settings: Settings) -> Iterator[Finding]:
    known = images(settings.images)
    for model in models(settings):
        runtime = model.recipe.planned_runtime
        if runtime is not None and Version(runtime.tensorrt_llm) not in known:
            yield notice(
                "image-missing",
                f"{model.name} names TensorRT-LLM {runtime.tensorrt_llm}, of which {settings.images} has no image",
                f"add it to {settings.images}, or to a list of your own: export ENGINEHOUSE_IMAGES=FILE",
            )
    yield fine(f"{len(known)} versions of TensorRT-LLM have an image in {settings.images}")


CHECK = Check("image", "the list of container images: ENGINEHOUSE_IMAGES", _look)
