"""Which kind a model is of."""

from __future__ import annotations

from tasks.kinds.protocol import EngineKind
from tasks.models.spec import Model


def engine_kind(model: Model) -> EngineKind:
    """The module of the model's kind."""
    match model.recipe.kind:
        case "llamacpp":
            from tasks.kinds.llamacpp import LlamaCppKind

            return LlamaCppKind()
        case "trt-engine":
            from tasks.kinds.trt_engine import TrtEngineKind

            return TrtEngineKind()
        case "llmapi":
            from tasks.kinds.llmapi import LlmApiKind

            return LlmApiKind()
