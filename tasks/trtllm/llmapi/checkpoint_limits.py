"""The limits and sizes of a Hugging Face checkpoint that the LLM API loads as the recipe says."""

from __future__ import annotations

import math
from pathlib import Path

from infra.errors import SourceError, StepFailed
from tasks.trtllm.limits import EngineLimits, cache_bytes_per_token
from tasks.trtllm.recipe import LlmApiFields
from tasks.weights.config import facts_of
from tasks.weights.facts import WeightsFacts

TOKENS_PER_BLOCK = 32
"""The block size of the KV cache: the default of `KvCacheConfig.tokens_per_block` from 1.0 on."""


def checkpoint_limits(folder: Path, recipe: LlmApiFields) -> EngineLimits:
    """The limits of the checkpoint in `folder`, with its weights divided evenly over the GPUs.

    Raises StepFailed `checkpoint-unfit` if `config.json` cannot be read.
    """
    try:
        facts = facts_of(folder)
    except (OSError, SourceError) as error:
        raise StepFailed(
            f"the config.json of the checkpoint cannot be read: {error}",
            hint="kind llmapi takes what transformers wrote: config.json names the type and the sizes of the model",
            code="checkpoint-unfit",
        ) from error
    return limits_of(facts, sum(path.stat().st_size for path in folder.rglob("*.safetensors")), recipe)


def limits_of(facts: WeightsFacts, weight_bytes: int, recipe: LlmApiFields) -> EngineLimits:
    """The limits of a checkpoint by its facts, with `weight_bytes` of weights divided evenly over the GPUs."""
    cache = recipe.llm_args.get("kv_cache_config")
    block = cache.get("tokens_per_block") if isinstance(cache, dict) else None
    return EngineLimits(
        max_batch_size=recipe.max_batch_size,
        max_input_len=recipe.max_input_len,
        max_seq_len=recipe.max_seq_len,
        max_beam_width=recipe.max_beam_width,
        tokens_per_block=block if isinstance(block, int) else TOKENS_PER_BLOCK,
        paged_kv_cache=True,
        paged_context_fmha=True,
        logits_type="FP32",
        cache_bytes_per_token=_cache_bytes(facts, recipe),
        weight_bytes=math.ceil(weight_bytes / (recipe.tp_size * recipe.pp_size)),
    )


def _cache_bytes(facts: WeightsFacts, recipe: LlmApiFields) -> int | None:
    if facts.cache is None:
        return None
    # The LLM API keeps what ModelOpt has named beside the weights, if no argument names another format.
    stored = facts.quantization.cache if facts.quantization is not None else None
    return cache_bytes_per_token(
        facts.cache,
        kept_as=recipe.kv_cache_dtype.upper() if recipe.kv_cache_dtype != "auto" else stored,
        # With data parallelism each GPU runs the attention of its own requests, with all heads.
        tp_size=1 if recipe.llm_args.get("enable_attention_dp") is True else recipe.tp_size,
        pp_size=recipe.pp_size,
    )
