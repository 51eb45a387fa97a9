"""The kinds, and the kind of a model. Each is imported when it is asked for: some bring more than a command needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.kinds.protocol import EngineKind
    from tasks.models.spec import Model


def _llamacpp(model: Model) -> EngineKind:
    from tasks.kinds.llamacpp import LlamaCppKind

    return LlamaCppKind(model)


def _trt_engine(model: Model) -> EngineKind:
    from tasks.kinds.trt_engine import TrtEngineKind

    return TrtEngineKind(model)


def _llmapi(model: Model) -> EngineKind:
    from tasks.kinds.llmapi import LlmApiKind

    return LlmApiKind(model)


def _transformers(model: Model) -> EngineKind:
    from tasks.kinds.transformers import TransformersKind

    return TransformersKind(model)


KINDS: dict[str, Callable[[Model], EngineKind]] = {
    "llamacpp": _llamacpp,
    "trt-engine": _trt_engine,
    "llmapi": _llmapi,
    "transformers": _transformers,
}
"""What makes the object of each kind. `tasks.models.recipe.RECIPES` has their recipes."""


def engine_kind(model: Model) -> EngineKind:
    """The model as its kind sees it: an object that is asked without the model."""
    return KINDS[model.kind](model)
