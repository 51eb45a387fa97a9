"""The limits and sizes of what a recipe makes of weights whose facts are known."""

from __future__ import annotations

import math

from pydantic import TypeAdapter

from tasks.trtllm.limits import EngineLimits, cache_bytes_per_token
from tasks.trtllm.planned_weights import planned_weight_bytes
from tasks.trtllm.recipe import LlmApiFields, TensorRtLlmFields, TrtEngineFields
from tasks.weights.facts import WeightsFacts

_FLAG = TypeAdapter[bool](bool)

TOKENS_PER_BLOCK = 32
"""The block size of the LLM API's KV cache: the default of `KvCacheConfig.tokens_per_block` from 1.0 on."""


def planned_limits(recipe: TensorRtLlmFields, facts: WeightsFacts) -> EngineLimits:
    """The limits of a checkpoint or an engine of these weights, divided evenly over the GPUs."""
    engine = recipe if isinstance(recipe, TrtEngineFields) else None
    return EngineLimits(
        max_batch_size=recipe.max_batch_size,
        max_input_len=recipe.max_input_len,
        max_seq_len=recipe.max_seq_len,
        max_beam_width=recipe.max_beam_width,
        tokens_per_block=engine.tokens_per_block if engine else _block(recipe),
        paged_kv_cache=engine is None or engine.kv_cache_type == "paged",
        paged_context_fmha=engine is None or engine.paged_context_fmha,
        logits_type="FP32",
        cache_bytes_per_token=_cache_bytes(recipe, facts),
        weight_bytes=math.ceil((planned_weight_bytes(recipe, facts) or 0) / (recipe.tp_size * recipe.pp_size)),
        # Each stage of a pipeline has room for the requests of all stages.
        state_bytes=math.ceil(facts.state_bytes / _attention_parts(recipe)),
    )


def has_attention_of_its_own(recipe: TensorRtLlmFields) -> bool:
    """Whether each GPU runs the attention of its own requests, with all heads (the LLM API's `enable_attention_dp`)."""
    if not isinstance(recipe, LlmApiFields):
        return False
    return _FLAG.validate_python(recipe.llm_args.get("enable_attention_dp", False))  # a file may say "true"


def _attention_parts(recipe: TensorRtLlmFields) -> int:
    return 1 if has_attention_of_its_own(recipe) else recipe.tp_size


def _block(recipe: TensorRtLlmFields) -> int:
    cache = recipe.llm_args.get("kv_cache_config") if isinstance(recipe, LlmApiFields) else None
    block = cache.get("tokens_per_block") if isinstance(cache, dict) else None
    return block if isinstance(block, int) else TOKENS_PER_BLOCK


def _cache_bytes(recipe: TensorRtLlmFields, facts: WeightsFacts) -> int | None:
    if facts.cache is None:
        return None
    # The LLM API keeps what ModelOpt has named beside the weights, if no argument names another format.
    stored = facts.quantization.cache if facts.quantization is not None else None
    return cache_bytes_per_token(
        facts.cache,
        kept_as=recipe.kv_cache_dtype.upper() if recipe.kv_cache_dtype != "auto" else stored,
        tp_size=_attention_parts(recipe),
        pp_size=recipe.pp_size,
    )
