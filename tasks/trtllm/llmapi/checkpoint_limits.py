"""The limits and sizes of a Hugging Face checkpoint that the LLM API loads as the recipe says."""

from __future__ import annotations

import json
import math
from pathlib import Path

from infra.errors import StepFailed
from tasks.trtllm.limits import EngineLimits, cache_bytes_per_token
from tasks.trtllm.recipe import LlmApiFields
from tasks.trtllm.speculation import DRAFT_FOLDER

TOKENS_PER_BLOCK = 32
"""The block size of the KV cache: the default of `KvCacheConfig.tokens_per_block` from 1.0 on."""


def checkpoint_limits(folder: Path, recipe: LlmApiFields) -> EngineLimits:
    """The limits of the checkpoint in `folder`, with its weights divided evenly over the GPUs.

    Raises StepFailed `checkpoint-unfit` if `config.json` does not give the size of the KV cache.
    """
    try:
        cache_bytes = _cache_bytes(folder, recipe)
        if (folder / DRAFT_FOLDER).is_dir():
            # What guesses keeps the same tokens in a cache of its own.
            cache_bytes += _cache_bytes(folder / DRAFT_FOLDER, recipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepFailed(
            f"config.json of the checkpoint does not give the size of the KV cache: {error!r}",
            hint="kind llmapi reads num_hidden_layers, num_attention_heads and hidden_size in it",
            code="checkpoint-unfit",
        ) from error
    cache = recipe.llm_args.get("kv_cache_config")
    block = cache.get("tokens_per_block") if isinstance(cache, dict) else None
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return EngineLimits(
        max_batch_size=recipe.max_batch_size,
        max_input_len=recipe.max_input_len,
        max_seq_len=recipe.max_seq_len,
        max_beam_width=recipe.max_beam_width,
        tokens_per_block=block if isinstance(block, int) else TOKENS_PER_BLOCK,
        paged_kv_cache=True,
        paged_context_fmha=True,
        logits_type="FP32",
        cache_bytes_per_token=cache_bytes,
        weight_bytes=math.ceil(weights / (recipe.tp_size * recipe.pp_size)),
    )


def _cache_bytes(folder: Path, recipe: LlmApiFields) -> int:
    config = json.loads((folder / "config.json").read_text())
    # A multimodal model keeps the sizes of its language part in an object of their own.
    model = config.get("text_config") or config
    return cache_bytes_per_token(
        layers=model["num_hidden_layers"],
        heads=model.get("num_key_value_heads") or model["num_attention_heads"],
        head_size=model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"],
        kept_as=recipe.kv_cache_dtype.upper() if recipe.kv_cache_dtype != "auto" else _quantized_cache(folder),
        tp_size=recipe.tp_size,
        pp_size=recipe.pp_size,
    )


def _quantized_cache(folder: Path) -> str | None:
    """The cache format that ModelOpt wrote beside its weights. The LLM API uses it if no argument names another."""
    path = folder / "hf_quant_config.json"
    return json.loads(path.read_text())["quantization"].get("kv_cache_quant_algo") if path.is_file() else None
