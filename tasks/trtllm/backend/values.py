"""The serving of a model's file as parameters of TensorRT-LLM's C++ backend.

NVIDIA's templates have a placeholder for each. Two of them are not named like their parameter.
"""

from __future__ import annotations

from tasks.trtllm.serving import TensorRtServing

PLACEHOLDERS = {"gpt_model_type": "batching_strategy", "gpt_model_path": "engine_dir"}
"""The placeholders that are named otherwise than their parameter, by parameter."""


def backend_values(serving: TensorRtServing, kv_cache_tokens: int | None) -> dict[str, str]:
    """The values that the file sets, by parameter. `kv_cache_tokens` is the size of the KV cache, if it has one."""
    values = {key: value for given in values_by_field(serving).values() for key, value in given.items()}
    if kv_cache_tokens is not None:
        values["max_tokens_in_paged_kv_cache"] = str(kv_cache_tokens)
    return values


def values_by_field(serving: TensorRtServing) -> dict[str, dict[str, str]]:
    """The parameters and values that each field of the model's file sets, without the size of the KV cache."""
    lora = serving.lora_cache
    fields: dict[str, dict[str, object]] = {
        "batching_strategy": {"gpt_model_type": serving.batching_strategy},
        "max_beam_width": {"max_beam_width": serving.max_beam_width},
        "scheduler_policy": {"batch_scheduler_policy": serving.scheduler_policy},
        "kv_cache_fraction": {"kv_cache_free_gpu_mem_fraction": serving.kv_cache_fraction},
        "kv_cache_reuse": {"enable_kv_cache_reuse": serving.kv_cache_reuse},
        "host_cache_bytes": {"kv_cache_host_memory_bytes": serving.host_cache_bytes},
        "attention_window": {"max_attention_window_size": ",".join(map(str, serving.attention_window)) or None},
        "sink_tokens": {"sink_token_length": serving.sink_tokens},
        "chunked_context": {"enable_chunked_context": serving.chunked_context},
        "exclude_input_in_output": {"exclude_input_in_output": serving.exclude_input_in_output},
        "gpu_device_ids": {
            "gpu_device_ids": ";".join(",".join(map(str, group)) for group in serving.gpu_device_ids) or None
        },
        "decoding_mode": {"decoding_mode": serving.decoding_mode},
        "multi_block_mode": {"multi_block_mode": serving.multi_block_mode},
        "context_fmha_fp32_acc": {"enable_context_fmha_fp32_acc": serving.context_fmha_fp32_acc},
        "gpu_weights_fraction": {"gpu_weights_percent": serving.gpu_weights_fraction},
        "guided_decoding": {"guided_decoding_backend": serving.guided_decoding},
        "xgrammar_tokenizer_info": {"xgrammar_tokenizer_info_path": serving.xgrammar_tokenizer_info},
        "lora_cache": {
            "lora_cache_optimal_adapter_size": lora.optimal_adapter_size,
            "lora_cache_max_adapter_size": lora.max_adapter_size,
            "lora_cache_gpu_memory_fraction": lora.gpu_fraction,
            "lora_cache_host_memory_bytes": lora.host_bytes,
        }
        if lora is not None
        else {},
        "lora_cache.prefetch_folder": {"lora_prefetch_dir": lora and lora.prefetch_folder},
    }
    return {
        field: {key: str(value) for key, value in values.items() if value is not None}
        for field, values in fields.items()
    }
