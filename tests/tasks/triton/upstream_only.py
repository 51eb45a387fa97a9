"""Tensors and parameters that only NVIDIA's five models have, and why the native layout lacks them.

The native `tensorrt_llm` has every tensor and parameter of NVIDIA's. The native `llm` replaces the other four: a step
after a decoupled model in an ensemble never learns which request its tokens belong to, so the model that turns tokens
into text must be the one that asked for them. It gives clients all of NVIDIA's `ensemble` and `tensorrt_llm_bls` but
for these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UpstreamOnly:
    """Tensors and parameters of models, each divided by spaces. `*` is every name that no other entry has."""

    models: str
    names: str
    reason: str


_CALLED = "ensemble tensorrt_llm_bls"
_STEPS = "preprocessing postprocessing"

UPSTREAM_ONLY: tuple[UpstreamOnly, ...] = (
    UpstreamOnly(
        _CALLED,
        "prompt_embedding_table prompt_vocab_size prompt_table_extra_id",
        "Prompt tuning needs an engine with room for its table, which no recipe asks for.",
    ),
    UpstreamOnly(
        f"{_CALLED} {_STEPS}",
        "image_input image_bytes_input image_url_input video_bytes_input multimodal_encoders_name "
        "visual_model_path multimodal_model_path max_num_images",
        "The contract is text in, text out; engines of several modalities are not built.",
    ),
    UpstreamOnly(_CALLED, "decoder_text_input", "Models with an encoder are not built."),
    UpstreamOnly(
        _CALLED, "embedding_bias_words embedding_bias_weights", "The contract forbids words with bad_words alone."
    ),
    UpstreamOnly(
        _CALLED,
        "return_context_logits return_generation_logits context_logits generation_logits",
        "The contract has log probabilities; context logits need an engine that gathers them.",
    ),
    UpstreamOnly(
        _CALLED,
        "num_return_sequences sequence_index batch_index",
        "One answer a row, and rows of a batch come in the order of the request.",
    ),
    UpstreamOnly(
        _CALLED,
        "lora_task_id lora_weights lora_config",
        "A request names an adapter of the model's file.",
    ),
    UpstreamOnly(
        _CALLED,
        "return_kv_cache_reuse_stats return_perf_metrics return_num_input_tokens return_num_output_tokens "
        "kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks arrival_time_ns "
        "first_scheduled_time_ns first_token_time_ns last_token_time_ns acceptance_rate "
        "total_accepted_draft_tokens total_draft_tokens num_input_tokens num_output_tokens",
        "Measurements are Triton's metrics, not part of an answer.",
    ),
    UpstreamOnly(
        _CALLED,
        "num_draft_tokens use_draft_logits tensorrt_llm_draft_model_name",
        "A release has no second, smaller engine that drafts.",
    ),
    UpstreamOnly(_CALLED, "accumulate_tokens", "What `llm` decodes is always all tokens so far."),
    UpstreamOnly(_STEPS, "tokenizer_dir gpt_model_path", "`llm` reads where its tokenizer lies in its serving.json."),
    UpstreamOnly(_STEPS, "tokenizer_type", "transformers tells from the files; so does 0.9, which dropped it."),
    UpstreamOnly(_STEPS, "add_special_tokens", "Added to raw text; a chat template brings its own."),
    UpstreamOnly(_STEPS, "skip_special_tokens", "The tokens that end an answer are never part of its text."),
    UpstreamOnly(_STEPS, "*", "Stays inside the process of `llm`."),
)


def reason(model: str, name: str) -> str:
    """Why the native layout has no `name` of NVIDIA's `model`; empty if no entry explains it."""
    for entry in UPSTREAM_ONLY:
        if model in entry.models.split() and (name in entry.names.split() or entry.names == "*"):
            return entry.reason
    return ""
