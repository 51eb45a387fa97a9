"""The keyword arguments of `tensorrt_llm.LLM`: those of a recipe, and those that say how it is served.

Sources: tensorrt_llm/llmapi/llm_args.py, whose stability lists go from 1.0 to 1.4; the code that it configures,
_torch/pyexecutor of 1.3.0rc3; on sampling, the documentation of 1.0.0, 1.2.0rc6, 1.3.0rc24 and 1.3.0rc26.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from packaging.version import Version
from pydantic import JsonValue

from infra.errors import UsageError
from tasks.trtllm.recipe import LlmApiFields
from tasks.trtllm.releases import in_span
from tasks.trtllm.serving import TensorRtServing
from tasks.trtllm.speculation import llm_speculation

CACHE_SHARE = 0.99
"""The most that a KV cache of a given size may take of the GPU memory that weights and activations leave free.

The LLM takes the smaller of size and share. Its default share is 0.9, and it refuses 1.
"""

_TORCH_SAMPLER_ALONE = Version("1.3.0rc26")
"""The first version without `sampler_type`. In older ones the PyTorch sampler ignores penalties, bad words or seeds in
silence, until pull requests 16052, 16485 and 17172 of July and August 2026."""

_FIRST_BYTES = "1.1"
"""The first release with `max_gpu_total_bytes`."""
_FIRST_NAMED_SAMPLER = Version("1.1.0rc1")
"""The first version with `sampler_type`."""

# Fields of `serving.tensorrt_llm` that the LLM API has no argument for, and why.
WITHOUT_COUNTERPART = {
    "decoupled": "the model of kind llmapi always streams",
    "batching_strategy": "the LLM API always batches in flight",
    "sink_tokens": "the attention of PyTorch keeps none",
    "exclude_input_in_output": "each request decides it",
    "accumulate_tokens": "it always holds",
    "queue_delay_microseconds": "the LLM gets each request at once",
    "queue_size": "requests wait in the LLM, until their deadline",
    "gpu_device_ids": "an LLM takes the first GPUs of those that CUDA_VISIBLE_DEVICES shows to Triton",
    "decoding_mode": "it follows from each request",
    "multi_block_mode": "it is of TensorRT engines alone",
    "context_fmha_fp32_acc": "it is of TensorRT engines alone",
    "gpu_weights_fraction": "it is of TensorRT engines alone",
    "xgrammar_tokenizer_info": "the LLM API makes it from the tokenizer",
    "llm_instances": "each would load the model once more",
    "preprocessing_instances": "it is of the upstream layout",
    "postprocessing_instances": "it is of the upstream layout",
    "bls_instances": "it is of the upstream layout",
    "extra": "it is of the upstream layout",
}


@dataclass(frozen=True)
class LoraRoom:
    """What all adapters of a release change, by TensorRT-LLM's names, their largest rank, and how many there are."""

    target_modules: tuple[str, ...]
    max_rank: int
    adapters: int


def llm_arguments(recipe: LlmApiFields) -> dict[str, JsonValue]:
    """The arguments of the recipe, however the checkpoint is served. The recipe's own `llm_args` come last."""
    return _with_further(_of_recipe(recipe), recipe.llm_args)


def release_arguments(
    recipe: LlmApiFields,
    serving: TensorRtServing,
    *,
    max_batch_size: int,
    max_seq_len: int,
    kv_cache_tokens: int | None,
    kv_cache_bytes: int | None = None,
    room: LoraRoom | None = None,
) -> dict[str, JsonValue]:
    """The arguments of the recipe with those of one release on top. The recipe's own `llm_args` come last.

    At most `max_batch_size` requests run at once, each of `max_seq_len` tokens. The KV cache holds `kv_cache_tokens`,
    which take `kv_cache_bytes` on a GPU if that is known; None leaves it to a fraction of the free memory. `room` is
    that for adapters that requests choose.
    """
    arguments: dict[str, JsonValue] = {
        "max_batch_size": max_batch_size,
        "max_seq_len": max_seq_len,
        "max_beam_width": serving.max_beam_width,
        "kv_cache_config": _cache(serving, kv_cache_tokens, _bound(recipe, serving, kv_cache_bytes)),
        **_sampler(recipe.runtime.version, speculates=speculates(recipe)),
    }
    if serving.max_beam_width > 1:
        # The documentation: neither goes with beam search.
        arguments |= {"disable_overlap_scheduler": True, "cuda_graph_config": None}
    if serving.scheduler_policy is not None:
        arguments["scheduler_config"] = {"capacity_scheduler_policy": serving.scheduler_policy.upper()}
    if serving.chunked_context is not None:
        arguments["enable_chunked_prefill"] = serving.chunked_context
    if serving.guided_decoding is not None:
        arguments["guided_decoding_backend"] = serving.guided_decoding
    if (lora := serving.lora_cache) is not None:
        arguments["peft_cache_config"] = {
            "optimal_adapter_size": lora.optimal_adapter_size,
            "max_adapter_size": lora.max_adapter_size,
            "device_cache_percent": lora.gpu_fraction,  # a fraction, whatever its name
            "host_cache_size": lora.host_bytes,
        }
    if room is not None:
        # Without lora_dir, whose adapter alone would be read for the modules, they have to be named.
        arguments["lora_config"] = {
            "lora_target_modules": list(room.target_modules),
            "max_lora_rank": room.max_rank,
            "max_loras": room.adapters,
            "max_cpu_loras": room.adapters,
        }
    return _with_further(_with_further(_of_recipe(recipe), arguments), recipe.llm_args)


def takes_adapters(recipe: LlmApiFields, adapters: Collection[str]) -> bool:
    """Whether the LLM has room for adapters: for those of the model's file, or as `llm_args` say."""
    return bool(adapters) or "lora_config" in recipe.llm_args


def check_llm_recipe(recipe: LlmApiFields, serving: TensorRtServing) -> None:
    """Raise UsageError `serving-unfit` if the LLM API cannot serve as the model's file asks."""
    for field, reason in WITHOUT_COUNTERPART.items():
        if getattr(serving, field) != TensorRtServing.model_fields[field].get_default(call_default_factory=True):
            raise _unfit(f"{field} has no counterpart in the LLM API: {reason}", "remove it")
    if serving.lora_cache is not None and serving.lora_cache.prefetch_folder is not None:
        raise _unfit("lora_cache.prefetch_folder has no counterpart: the LLM API reads none", "remove it")
    if serving.kv_cache_fraction == 1:
        raise _unfit("kv_cache_fraction must be below 1 for the LLM API", "0.9 is its own default")
    if speculates(recipe) and serving.max_beam_width > 1:
        raise _unfit("max_beam_width must be 1 with speculation", "beam search checks no guesses")
    if serving.max_beam_width > recipe.max_beam_width:
        raise _unfit(
            f"max_beam_width {serving.max_beam_width} is more than the recipe's, {recipe.max_beam_width}",
            "raise recipe.max_beam_width",
        )


def speculates(recipe: LlmApiFields) -> bool:
    """Whether the LLM checks guessed tokens, by the recipe's `speculation` or by its own `llm_args`."""
    return recipe.speculation is not None or recipe.llm_args.get("speculative_config") is not None


def _with_further(arguments: Mapping[str, JsonValue], further: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """`arguments` with `further` on top. An object in both, such as `kv_cache_config`, is joined field by field."""
    result = dict(arguments)
    for name, value in further.items():
        before = result.get(name)
        result[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _of_recipe(recipe: LlmApiFields) -> dict[str, JsonValue]:
    arguments: dict[str, JsonValue] = {
        "dtype": recipe.dtype,
        "tensor_parallel_size": recipe.tp_size,
        "pipeline_parallel_size": recipe.pp_size,
        "context_parallel_size": recipe.cp_size,
        "max_batch_size": recipe.max_batch_size,
        "max_input_len": recipe.max_input_len,
        "max_seq_len": recipe.max_seq_len,
        "max_num_tokens": recipe.max_num_tokens,
        "max_beam_width": recipe.max_beam_width,
        "trust_remote_code": False,
    }
    if recipe.moe_tp_size is not None:
        arguments |= {
            "moe_tensor_parallel_size": recipe.moe_tp_size,
            "moe_expert_parallel_size": recipe.moe_ep_size,
        }
    if recipe.kv_cache_dtype != "auto":
        arguments["kv_cache_config"] = {"dtype": recipe.kv_cache_dtype}
    if recipe.speculation is not None:
        arguments["speculative_config"] = llm_speculation(recipe.runtime.version, recipe.speculation)
    return arguments


def _sampler(version: Version, *, speculates: bool) -> dict[str, JsonValue]:
    """The arguments that choose the sampler which honours every field of a request.

    Guesses are checked by PyTorch's sampler alone.
    """
    if speculates:
        return {"sampler_type": "TorchSampler"} if _FIRST_NAMED_SAMPLER <= version < _TORCH_SAMPLER_ALONE else {}
    if version.release[:2] == (1, 0):
        return {"enable_trtllm_sampler": True}
    return {"sampler_type": "TRTLLMSampler"} if version < _TORCH_SAMPLER_ALONE else {}


def _bound(recipe: LlmApiFields, serving: TensorRtServing, kv_cache_bytes: int | None) -> int | None:
    """The bytes that bound a cache with several windows, which has a pool for each and heeds no number of tokens.

    1.0 bounds each pool by the tokens. Source: `calculate_max_num_blocks_for_vswa` in resource_manager.py.
    """
    several = len(set(serving.attention_window)) > 1
    return kv_cache_bytes if several and in_span(recipe.runtime.version, _FIRST_BYTES) else None


def _cache(serving: TensorRtServing, tokens: int | None, most_bytes: int | None) -> dict[str, JsonValue]:
    share = serving.kv_cache_fraction or (CACHE_SHARE if tokens is not None else None)
    given: dict[str, JsonValue] = {
        "max_tokens": tokens,
        "free_gpu_memory_fraction": share,
        "enable_block_reuse": serving.kv_cache_reuse,
        "host_cache_size": serving.host_cache_bytes,
        "max_attention_window": [*serving.attention_window] or None,
        "max_gpu_total_bytes": most_bytes,
    }
    return {key: value for key, value in given.items() if value is not None}


def _unfit(problem: str, hint: str) -> UsageError:
    return UsageError(problem, hint=hint, code="serving-unfit")
