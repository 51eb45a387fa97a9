"""From a recipe of kind `trt-engine` to one for the LLM API, the only way to serve from TensorRT-LLM 1.3 on."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from packaging.version import InvalidVersion, Version
from pydantic import JsonValue

from infra.frozen import Spec
from tasks.trtllm.llmapi.arguments import WITHOUT_COUNTERPART
from tasks.trtllm.recipe import TensorRtLlmFields, TrtEngineFields
from tasks.trtllm.releases import in_span
from tasks.trtllm.serving import TensorRtServing

_SAME = tuple(TensorRtLlmFields.model_fields)
# The LLM API always does these, or leaves them to the weights.
_WITHOUT_COUNTERPART = (
    "variant",
    "portable",
    "kv_cache_type",
    "paged_context_fmha",
    "fused_mlp",
    "fast_build",
    "plugins",
)


@dataclass(frozen=True)
class Translation:
    """`recipe` and `serving` as they would stand in a model's file, before anything checks them.

    `moved` maps the old names of renamed fields to the new ones. `lost` has the values of fields without a counterpart,
    if the file sets them to something else than their default.
    """

    recipe: dict[str, JsonValue]
    serving: dict[str, JsonValue] | None
    moved: dict[str, str]
    lost: dict[str, JsonValue]


def to_llmapi(recipe: TrtEngineFields, serving: TensorRtServing | None, version: str) -> Translation:
    """The recipe and serving with which the LLM API of TensorRT-LLM `version` serves the same weights."""
    document = recipe.model_dump(mode="json")
    arguments: dict[str, JsonValue] = {}
    moved: dict[str, str] = {}
    without = _WITHOUT_COUNTERPART
    if _has_block_size(version):
        arguments["kv_cache_config"] = {"tokens_per_block": recipe.tokens_per_block}
        moved["tokens_per_block"] = "llm_args.kv_cache_config.tokens_per_block"
    else:
        without = (*without, "tokens_per_block")
    if recipe.lora is not None:
        arguments["lora_config"] = {
            "lora_target_modules": list(recipe.lora.target_modules),
            "max_lora_rank": recipe.lora.max_rank,
        }
        moved["lora"] = "llm_args.lora_config"
    lost = {name: document[name] for name in without if document[name] != _default(name)}
    lost |= {f"extra_args.{tool}": words for tool, words in document["extra_args"].items() if words}
    if recipe.speculation is not None and recipe.speculation.mode != "draft_tokens_external":
        lost["speculation"], document["speculation"] = document["speculation"], None
    kept, dropped = _serving(serving)
    return Translation(
        recipe={
            "kind": "llmapi",
            **{name: document[name] for name in _SAME},
            "runtime": recipe.runtime.with_version(version),
            "llm_args": arguments,
        },
        serving=kept,
        moved=moved,
        lost=lost | {f"serving.tensorrt_llm.{name}": value for name, value in dropped.items()},
    )


def explained(recipe: Spec, translation: Translation) -> str:
    """The recipe as it would stand in the model's file, and what became of the other fields."""
    document = recipe.model_dump(mode="json", exclude_defaults=True)
    lines = [yaml.safe_dump({"recipe": document}, sort_keys=False).rstrip()]
    lines += [f"# {old} is now {new}" for old, new in translation.moved.items()]
    lines += [f"# {lost} has no counterpart" for lost in translation.lost]
    return "\n".join(lines)


def _has_block_size(version: str) -> bool:
    """Whether KvCacheConfig has tokens_per_block. Source: llm_args.py of 1.0 and of 1.3.0rc3."""
    try:
        return in_span(Version(version), "1.1")
    except InvalidVersion:
        return False  # the recipe refuses it when it is parsed


def _serving(serving: TensorRtServing | None) -> tuple[dict[str, JsonValue] | None, dict[str, JsonValue]]:
    """The fields that are kept, and the values of those that are lost."""
    if serving is None:
        return None, {}
    kept: dict[str, JsonValue] = serving.model_dump(mode="json", exclude_defaults=True)
    lost: dict[str, JsonValue] = {name: kept.pop(name) for name in WITHOUT_COUNTERPART if name in kept}
    cache = kept.get("lora_cache")
    if isinstance(cache, dict) and "prefetch_folder" in cache:
        lost["lora_cache.prefetch_folder"] = cache.pop("prefetch_folder")
    return kept, lost


def _default(name: str) -> object:
    return TrtEngineFields.model_fields[name].default
