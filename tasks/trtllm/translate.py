"""From an engine's recipe to one for the LLM API, which is all that there is from TensorRT-LLM 1.3 on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from tasks.trtllm.recipe import LlmApiRecipe, TensorRtLlmRecipe, TrtEngineRecipe
from tasks.trtllm.releases import LAST

_SAME = tuple(TensorRtLlmRecipe.model_fields)
# What the LLM API does always, or leaves to the weights.
_WITHOUT_COUNTERPART = ("portable", "kv_cache_type", "paged_context_fmha", "fused_mlp", "fast_build", "plugins")


@dataclass(frozen=True)
class Translation:
    """`moved` holds fields that are called otherwise now, by their old names; `lost` those without a counterpart.

    Of the latter only those that the engine's recipe sets to something else than their default.
    """

    recipe: LlmApiRecipe
    moved: dict[str, str]
    lost: tuple[str, ...]


def without_engines(version: str) -> bool:
    """Whether TensorRT-LLM `version` is one that builds no engines any more."""
    try:
        return Version(version).release[:2] > Version(LAST).release
    except InvalidVersion:
        return False  # whoever parses a recipe with it says so


def to_llmapi(recipe: TrtEngineRecipe, version: str) -> Translation:
    """The recipe with which TensorRT-LLM `version` serves the same weights. Raises ValueError as any recipe does."""
    document = recipe.model_dump()
    kept: dict[str, Any] = {name: document[name] for name in _SAME}
    kept["runtime"] = recipe.runtime.with_version(version)
    arguments: dict[str, Any] = {"kv_cache_config": {"tokens_per_block": recipe.tokens_per_block}}
    moved = {"tokens_per_block": "llm_args.kv_cache_config.tokens_per_block"}
    if recipe.lora is not None:
        arguments["lora_config"] = {
            "lora_target_modules": list(recipe.lora.target_modules),
            "max_lora_rank": recipe.lora.max_rank,
        }
        moved["lora"] = "llm_args.lora_config"
    lost = [name for name in _WITHOUT_COUNTERPART if document[name] != _default(name)]
    lost += [f"extra_args.{tool}" for tool, words in document["extra_args"].items() if words]
    lost += ["speculation"] if recipe.speculation is not None else []
    made = LlmApiRecipe.model_validate({**kept, "kind": "llmapi", "llm_args": arguments})
    return Translation(made, moved, tuple(lost))


def explained(translation: Translation) -> str:
    """The recipe as it would stand in the model's file, and what became of the other fields."""
    document = translation.recipe.model_dump(mode="json", exclude_defaults=True)
    told = [yaml.safe_dump({"recipe": document}, sort_keys=False).rstrip()]
    told += [f"# {old} is now {new}" for old, new in translation.moved.items()]
    told += [f"# {lost} has no counterpart" for lost in translation.lost]
    return "\n".join(told)


def _default(name: str) -> object:
    return TrtEngineRecipe.model_fields[name].default
