"""Whether a version of TensorRT-LLM, and an engine, can serve as a model's file asks."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from packaging.version import Version

from infra.errors import UsageError
from tasks.trtllm.backend.parameters import defaults, spans
from tasks.trtllm.backend.values import values_by_field
from tasks.trtllm.products import gpu_memory_bytes, meant
from tasks.trtllm.recipe import TrtEngineFields
from tasks.trtllm.releases import in_span
from tasks.trtllm.serving import LoraCache, TensorRtServing


def check_version(version: Version, serving: TensorRtServing) -> None:
    """Raise UsageError `serving-unfit` if `version` lacks a field that is set. The hint names versions that have it."""
    known = defaults(version)
    for field, values in values_by_field(serving).items():
        for key in values:
            if key not in known:
                raise _unfit(f"TensorRT-LLM {version} has no {field}", f"{spans(key)} have it")
    for field, first, wanted in _younger_features(serving):
        if wanted and not in_span(version, first):
            raise _unfit(f"TensorRT-LLM {version} has no {field}", f"{first} and later have it")


def check_recipe(recipe: TrtEngineFields, serving: TensorRtServing) -> None:
    """Raise UsageError `serving-unfit` if the recipe's version, engine or GPU cannot serve this way."""
    check_version(recipe.runtime.version, serving)
    check_against_engine(
        serving,
        serving.kv_cache_tokens,
        max_beam_width=recipe.max_beam_width,
        max_seq_len=recipe.max_seq_len,
        paged_kv_cache=recipe.kv_cache_type == "paged",
        paged_context_fmha=recipe.paged_context_fmha,
    )
    if recipe.speculation is not None:
        _check_speculation(recipe.speculation.mode, serving)
    sized = serving.kv_cache_tokens or serving.kv_cache_bytes or serving.kv_cache_fraction
    if not sized and (recipe.runtime.gpu_memory_bytes or gpu_memory_bytes(recipe.runtime.gpu)) is None:
        raise _unfit(
            f"the memory of a '{recipe.runtime.gpu}' is not known, and the size of the KV cache follows from it",
            f"{meant(recipe.runtime.gpu)}, or kv_cache_tokens",
        )


def check_adapters(recipe: TrtEngineFields, adapters: Collection[str], serving: TensorRtServing) -> None:
    """Raise UsageError `serving-unfit` if requests cannot choose one of `adapters`, or `lora_cache` holds none."""
    # 0.8 builds none with room, and requests to it could not name an adapter (lora_task_id).
    if recipe.lora is None and (adapters or serving.lora_cache is not None):
        raise _unfit(
            "an engine takes adapters only if it was built with room for them",
            "give recipe.lora, its target_modules and max_rank",
        )
    if adapters and recipe.speculation is not None and recipe.speculation.mode == "draft_tokens_external":
        raise _unfit("adapters do not go with a draft model, which guesses without them", "remove recipe.speculation")
    most = (serving.lora_cache or LoraCache()).max_adapter_size
    if adapters and recipe.lora is not None and recipe.lora.max_rank > most:
        raise _unfit(
            f"lora_cache.max_adapter_size is {most}, and recipe.lora.max_rank {recipe.lora.max_rank}",
            "raise serving.tensorrt_llm.lora_cache.max_adapter_size",
        )


def _check_speculation(mode: str, serving: TensorRtServing) -> None:
    if mode == "draft_tokens_external":
        if serving.kv_cache_fraction is not None and not (serving.kv_cache_tokens or serving.kv_cache_bytes):
            raise _unfit("kv_cache_fraction leaves no room for the draft model's cache", "give kv_cache_tokens")
        for field in ("guided_decoding", "lora_cache"):
            if getattr(serving, field) is not None:
                raise _unfit(f"{field} does not go with a draft model", "remove it, or recipe.speculation")
    elif serving.decoding_mode is not None:
        raise _unfit(f"decoding_mode follows from recipe.speculation, {mode}", "remove it")


def check_against_engine(
    serving: TensorRtServing,
    kv_cache_tokens: int | None,
    *,
    max_beam_width: int,
    max_seq_len: int,
    paged_kv_cache: bool,
    paged_context_fmha: bool,
) -> None:
    """Raise UsageError `serving-unfit` if an engine with these limits cannot serve this way.

    Lengths are tokens. `kv_cache_tokens` is the size of the KV cache, None where a fraction of the memory decides it.
    """
    if serving.max_beam_width > max_beam_width:
        raise _unfit(
            f"max_beam_width {serving.max_beam_width} is more than the engine's, {max_beam_width}",
            "raise recipe.max_beam_width",
        )
    for field in ("kv_cache_reuse", "chunked_context"):
        if getattr(serving, field) and not paged_context_fmha:
            raise _unfit(f"{field} needs an engine with paged_context_fmha", "set it in the recipe")
    if not paged_kv_cache and serving.batching_strategy != "v1":
        raise _unfit(
            f"{serving.batching_strategy} needs a paged KV cache", "set recipe.kv_cache_type, or batching_strategy v1"
        )
    # With a cache that is too small for one sequence the backend does not load.
    sequence = min(max_seq_len, max(serving.attention_window, default=max_seq_len)) * serving.max_beam_width
    if kv_cache_tokens is not None and kv_cache_tokens < sequence:
        raise _unfit(
            f"a KV cache of {kv_cache_tokens} tokens does not hold one sequence of {sequence}",
            "raise kv_cache_tokens or kv_cache_bytes",
        )
    if serving.guided_decoding and serving.xgrammar_tokenizer_info is None:
        raise _unfit("guided_decoding of an engine needs xgrammar_tokenizer_info", "name that file")


def _younger_features(serving: TensorRtServing) -> Iterator[tuple[str, str, bool]]:
    """Features that came later than their parameter: the feature, its first version, whether the file asks for it.

    Older versions do something else in silence: they take the first window and drop the others, know one instance,
    and replace the policy. Source: the tags of tensorrtllm_backend, the templates for the queue and
    model_instance_state.cc for the rest.
    """
    yield "queue_size", "0.12", serving.queue_size is not None
    yield "attention_window of several sizes", "0.13", len(serving.attention_window) > 1
    yield "gpu_device_ids of several instances", "0.12", len(serving.gpu_device_ids) > 1
    replaced = serving.scheduler_policy == "max_utilization" and serving.decoupled and not serving.chunked_context
    yield "max_utilization for a decoupled model without chunked_context", "0.12", replaced


def _unfit(problem: str, hint: str) -> UsageError:
    return UsageError(problem, hint=hint, code="serving-unfit")
