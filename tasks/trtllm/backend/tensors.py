"""The tensors of the `tensorrt_llm` model of TensorRT-LLM's C++ backend, version by version.

Read from `all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt`: 0.8 to 0.19 in the tags of tensorrtllm_backend,
exactly; 0.20 to 1.2 in TensorRT-LLM at 2a9abd95 and 0c8de69a (between 1.1 and 1.3), so their `since` may be off by a
release or two. A backend does not read an input that it does not know, and never sends an output that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from packaging.version import Version

from tasks.trtllm.releases import FIRST, in_span

LOGITS = "LOGITS"
"""Stands for the type of the engine's logits: FP32 until 0.16, the build's `--logits_dtype` from 0.17 on."""

LORA = "LORA"
"""Stands for the type of adapters: FP16 in every template, and the engine refuses all but its own dtype."""


@dataclass(frozen=True)
class Tensors:
    """Tensors that are alike, in minor releases from `since` to before `until`. Spaces separate their `names`.

    `dims` leave the batch out. A `scalar` of dims [1] reaches the backend without that dimension (`reshape`). `ragged`
    tensors may differ in length within a batch. Outputs set neither of these, nor `required`.
    """

    names: str
    data_type: str
    dims: tuple[int, ...]
    since: str = FIRST
    until: str = ""
    scalar: bool = False
    ragged: bool = False
    required: bool = False


def _scalars(since: str, data_type: str, names: str, until: str = "") -> Tensors:
    return Tensors(names, data_type, (1,), since, until, scalar=True)


def _ragged(since: str, data_type: str, dims: tuple[int, ...], names: str) -> Tensors:
    return Tensors(names, data_type, dims, since, ragged=True)


ENGINE_INPUTS: tuple[Tensors, ...] = (
    # Optional once an encoder's features may come instead.
    Tensors("input_ids", "INT32", (-1,), until="0.15", ragged=True, required=True),
    _ragged("0.15", "INT32", (-1,), "input_ids"),
    Tensors("input_lengths", "INT32", (1,), scalar=True, required=True),
    Tensors("request_output_len", "INT32", (1,), until="0.12", required=True),
    Tensors("request_output_len", "INT32", (1,), "0.12", scalar=True, required=True),
    Tensors("stop streaming", "BOOL", (1,), until="0.12"),
    _scalars("0.12", "BOOL", "stop streaming"),
    _scalars("0.8", "INT32", "end_id pad_id beam_width runtime_top_k prompt_vocab_size"),
    _scalars("0.8", "FP32", "temperature runtime_top_p len_penalty repetition_penalty"),
    _scalars("0.8", "FP32", "presence_penalty frequency_penalty"),
    _scalars("0.8", "BOOL", "return_log_probs return_context_logits return_generation_logits"),
    # c2e65b8 of TensorRT-LLM renamed these two.
    _scalars("0.8", "INT32", "min_length", until="0.20"),
    _scalars("0.20", "INT32", "min_tokens"),
    _scalars("0.8", "UINT64", "random_seed", until="0.20"),
    _scalars("0.20", "UINT64", "seed"),
    _ragged("0.8", "INT32", (-1,), "draft_input_ids"),
    _ragged("0.8", "INT32", (2, -1), "stop_words_list bad_words_list"),
    _ragged("0.8", "FP32", (-1,), "embedding_bias"),
    # FP16 in every template until 1.0, from about 1.1 on whatever the prompt tuning was built with.
    _ragged("0.8", "FP16", (-1, -1), "prompt_embedding_table"),
    _ragged("0.8", LORA, (-1, -1), "lora_weights"),
    _ragged("0.8", "INT32", (-1, 3), "lora_config"),
    _ragged("0.9", LOGITS, (-1, -1), "draft_logits"),
    _scalars("0.9", "UINT64", "lora_task_id"),
    _scalars("0.10", "FP32", "draft_acceptance_threshold beam_search_diversity_rate"),
    _scalars("0.10", "FP32", "runtime_top_p_min runtime_top_p_decay"),
    _scalars("0.10", "INT32", "runtime_top_p_reset_ids"),
    _scalars("0.10", "BOOL", "early_stopping"),
    _ragged("0.11", "INT32", (-1,), "decoder_input_ids"),
    _scalars("0.11", "INT32", "decoder_input_lengths"),
    _ragged("0.13", "UINT64", (-1,), "prompt_table_extra_ids"),
    _scalars("0.14", "INT32", "num_return_sequences"),
    _scalars("0.14", "BOOL", "exclude_input_in_output"),
    _ragged("0.14", "UINT8", (-1,), "context_phase_params"),
    # For encoders, which Enginehouse does not build; the template leaves the type open.
    _ragged("0.15", "FP16", (-1, -1), "encoder_input_features"),
    _scalars("0.15", "INT32", "encoder_output_lengths"),
    _ragged("0.15", "BOOL", (-1, -1), "cross_attention_mask"),
    _scalars("0.16", "BOOL", "return_kv_cache_reuse_stats", until="0.19"),
    _scalars("0.19", "BOOL", "return_perf_metrics"),
    _ragged("0.16", "BOOL", (1,), "skip_cross_attn_blocks"),
    _ragged("0.17", "INT32", (-1,), "retention_token_range_starts retention_token_range_ends"),
    _ragged("0.17", "INT32", (-1,), "retention_token_range_priorities retention_token_range_durations_ms"),
    _ragged("0.17", "INT32", (1,), "retention_decode_priority retention_decode_duration_ms"),
    Tensors("mrope_rotary_cos_sin", "FP32", (-1,), "0.19"),
    Tensors("mrope_position_deltas", "INT64", (1,), "0.19"),
    _ragged("0.19", "STRING", (1,), "guided_decoding_guide_type guided_decoding_guide"),
    _ragged("0.19", "INT32", (1,), "lookahead_window_size lookahead_ngram_size lookahead_verification_set_size"),
    # 0.19 does not have them; the sources read after 1.1 do.
    _scalars("1.0", "BOOL", "return_num_input_tokens return_num_output_tokens"),
)

ENGINE_OUTPUTS: tuple[Tensors, ...] = (
    Tensors("output_ids", "INT32", (-1, -1)),
    Tensors("sequence_length", "INT32", (-1,)),
    Tensors("cum_log_probs", "FP32", (-1,)),
    Tensors("output_log_probs", "FP32", (-1, -1)),
    Tensors("context_logits", LOGITS, (-1, -1)),
    Tensors("generation_logits", LOGITS, (-1, -1, -1)),
    Tensors("batch_index", "INT32", (1,), "0.12"),
    Tensors("sequence_index", "INT32", (1,), "0.14"),
    Tensors("context_phase_params", "UINT8", (-1,), "0.14"),
    Tensors("kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks", "INT32", (1,), "0.16"),
    Tensors("arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns", "INT64", (1,), "0.19"),
    Tensors("acceptance_rate", "FP32", (1,), "0.19"),
    Tensors("total_accepted_draft_tokens total_draft_tokens", "INT32", (1,), "0.19"),
    Tensors("num_input_tokens num_output_tokens", "INT32", (1,), "1.0"),
)


def tensors(table: tuple[Tensors, ...], version: Version) -> Iterator[tuple[str, Tensors]]:
    """The tensors of a table that `version` has, each with its name."""
    for group in table:
        if in_span(version, group.since, group.until):
            for name in group.names.split():
                yield name, group
