"""The `parameters` of the `tensorrt_llm` model of TensorRT-LLM's C++ backend, version by version.

Source of the keys: the templates that `tensors` names. Source of what the backend does with a key, and without it:
`inflight_batcher_llm/src/model_instance_state.cc` of the same tags (0.20 to 1.2: TensorRT-LLM at 0c8de69a).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from packaging.version import Version

from tasks.trtllm.releases import FIRST, in_span

UNSET = ""
"""The backend reports a value that does not convert to its number, list or mode, and ignores it."""


@dataclass(frozen=True)
class Parameter:
    """`key` and what the backend does without it. Minor releases from `since` to before `until` have it."""

    key: str
    default: str
    since: str = FIRST
    until: str = ""


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("max_beam_width", "1"),
    Parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no"),
    Parameter("gpt_model_type", "inflight_fused_batching"),
    Parameter("gpt_model_path", UNSET),
    Parameter("encoder_model_path", UNSET, "0.11"),
    Parameter("max_tokens_in_paged_kv_cache", UNSET),
    Parameter("max_attention_window_size", UNSET),
    Parameter("sink_token_length", UNSET, "0.10"),
    Parameter("batch_scheduler_policy", "guaranteed_no_evict"),
    # Without effect where the number of tokens is set.
    Parameter("kv_cache_free_gpu_mem_fraction", "0.9"),
    Parameter("cross_kv_cache_fraction", UNSET, "0.14"),
    Parameter("kv_cache_host_memory_bytes", "0", "0.10"),
    Parameter("kv_cache_onboard_blocks", "True", "0.10"),
    # 0.10 to 0.19 only warn of it. It came back between 1.1 and 1.3; no closer source is known.
    Parameter("enable_trt_overlap", "False", until="0.10"),
    Parameter("enable_trt_overlap", "False", "1.2"),
    Parameter("exclude_input_in_output", "False"),
    Parameter("enable_kv_cache_reuse", "False", until="0.19"),
    Parameter("enable_kv_cache_reuse", "True", "0.19"),
    Parameter("normalize_log_probs", "True"),
    Parameter("enable_chunked_context", "False"),
    Parameter("gpu_device_ids", UNSET),
    Parameter("participant_ids", UNSET, "0.13"),
    Parameter("num_nodes", "1", "0.19"),
    Parameter("lora_cache_optimal_adapter_size", "8", "0.9"),
    Parameter("lora_cache_max_adapter_size", "64", "0.9"),
    Parameter("lora_cache_gpu_memory_fraction", "0.05", "0.9"),
    Parameter("lora_cache_host_memory_bytes", str(2**30), "0.9"),
    Parameter("lora_prefetch_dir", UNSET, "0.19"),
    Parameter("decoding_mode", UNSET, "0.9"),
    Parameter("medusa_choices", UNSET, "0.9"),
    Parameter("eagle_choices", UNSET, "0.16"),
    Parameter("lookahead_window_size", UNSET, "0.19"),
    Parameter("lookahead_ngram_size", UNSET, "0.19"),
    Parameter("lookahead_verification_set_size", UNSET, "0.19"),
    # 0.10 and later refuse this key.
    Parameter("worker_path", "/opt/tritonserver/backends/tensorrtllm/triton_tensorrtllm_worker", "0.9", "0.10"),
    Parameter("executor_worker_path", "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker", "0.10"),
    Parameter("cancellation_check_period_ms", "100", "0.10"),
    Parameter("stats_check_period_ms", "100", "0.10"),
    Parameter("iter_stats_max_iterations", "1000", "0.10"),
    Parameter("request_stats_max_iterations", "0", "0.10"),
    # In no template. 0 waits for requests in a busy loop.
    Parameter("recv_poll_period_ms", "0", "0.13"),
    Parameter("gpu_weights_percent", "1.0", "0.10"),
    # In 0.12 to 0.14 the templates write the names of 0.15, and the backend reads others. Both are written.
    Parameter("multi_block_mode", "False", "0.12", "0.13"),
    Parameter("multi_block_mode", "True", "0.13"),
    Parameter("multiBlockMode", "False", "0.12", "0.13"),
    Parameter("multiBlockMode", "True", "0.13", "0.15"),
    Parameter("enable_context_fmha_fp32_acc", "False", "0.12"),
    Parameter("enableContextFMHAFP32Acc", "False", "0.12", "0.15"),
    Parameter("cuda_graph_mode", "False", "0.15"),
    Parameter("cuda_graph_cache_size", "0", "0.15"),
    Parameter("speculative_decoding_fast_logits", "False", "0.15"),
    # 0.19 and later do not load without these three keys. Empty values are not used.
    Parameter("tokenizer_dir", UNSET, "0.19"),
    Parameter("guided_decoding_backend", UNSET, "0.19"),
    Parameter("xgrammar_tokenizer_info_path", UNSET, "0.19"),
)

LEFT_OUT_UNSET = ("lora_prefetch_dir",)
"""Keys that the backend uses even when they are empty: an empty folder is the server's working directory."""

READ_AS = {"multi_block_mode": "multiBlockMode", "enable_context_fmha_fp32_acc": "enableContextFMHAFP32Acc"}
"""The key that 0.12 to 0.14 read, by the key that all templates and other versions use."""


@cache
def defaults(version: Version) -> Mapping[str, str]:
    """Every parameter that `version` knows, with its default."""
    return {entry.key: entry.default for entry in PARAMETERS if in_span(version, entry.since, entry.until)}


def spans(key: str) -> str:
    """The releases that have a parameter, for people: `0.10 and later`, `0.8 to before 0.10, 1.2 and later`."""
    joined: list[tuple[str, str]] = []
    for entry in (entry for entry in PARAMETERS if entry.key == key):
        if joined and joined[-1][1] == entry.since:
            joined[-1] = (joined[-1][0], entry.until)
        else:
            joined.append((entry.since, entry.until))
    return ", ".join(f"{since} to before {until}" if until else f"{since} and later" for since, until in joined)
