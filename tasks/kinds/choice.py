"""The kinds, and the kind of a model."""

from __future__ import annotations

from collections.abc import Callable

from tasks.kinds.llamacpp import LlamaCppKind
from tasks.kinds.llmapi import LlmApiKind
from tasks.kinds.protocol import EngineKind
from tasks.kinds.transformers import TransformersKind
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model

KINDS: dict[str, Callable[[Model], EngineKind]] = {
    "llamacpp": LlamaCppKind,
    "trt-engine": TrtEngineKind,
    "llmapi": LlmApiKind,
    "transformers": TransformersKind,
}
"""What makes the object of each kind. `tasks.models.recipe.RECIPES` has their recipes."""


def engine_kind(model: Model) -> EngineKind:
    """The model as its kind sees it: an object that is asked without the model."""
    return KINDS[model.kind](model)
