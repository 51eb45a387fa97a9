"""The `config.pbtxt` of the `tensorrt_llm` model: the engine itself, in TensorRT-LLM's C++ backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from packaging.version import Version

from infra.errors import UsageError
from tasks.triton.backend_parameters import LEFT_OUT_UNSET, READ_AS, UNSET, defaults, spans
from tasks.triton.backend_tensors import INPUTS, LOGITS, OUTPUTS, in_span, tensors
from tasks.triton.config import data_type, message, render
from tasks.trtllm.releases import FIRST, LAST, release_of

TENSORRT_LLM = "tensorrt_llm"
"""The model's relative name."""

BACKEND = "tensorrtllm"
"""Templates from 0.10 on also allow `python`, which knows fewer parameters."""

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class LoraCache:
    """Room for LoRA adapters, by rank, on the GPU (a fraction of free memory) and the host.

    `prefetch_folder` holds adapters to load at the start.
    """

    optimal_adapter_size: int = 8
    max_adapter_size: int = 64
    gpu_fraction: float = 0.05
    host_bytes: int = 2**30
    prefetch_folder: str | None = None


@dataclass(frozen=True)
class BackendSettings:
    """How the backend runs an engine. None leaves it to the version's default.

    `engine_folder` is absolute, on the node. The KV cache has `kv_cache_tokens` tokens, or `kv_cache_bytes` of which
    each token takes `kv_bytes_per_token` (all layers of one rank), or `kv_cache_fraction` of the memory that is free
    once the engine is loaded, 0.9 where nothing is said; with a fraction beside a number the smaller counts.
    `attention_windows` has one number for all layers, or one a layer in turn. `device_ids` has the GPUs of each
    instance. `queue_delay_us` is in microseconds; `queue_size` 0 is no limit. `guided_tokenizer_info` is the file that
    xgrammar makes of a tokenizer. `logits_type` is that of the engine's build, in Triton's names.
    """

    engine_folder: str
    max_batch_size: int
    max_beam_width: int = 1
    decoupled: bool = True
    batching_strategy: Literal["inflight_fused_batching", "inflight_batching", "v1"] = "inflight_fused_batching"
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    queue_delay_us: int = 0
    queue_size: int = 0
    exclude_input: bool = True
    kv_cache_tokens: int | None = None
    kv_cache_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    kv_cache_fraction: float | None = None
    host_cache_bytes: int | None = None
    kv_reuse: bool | None = None
    attention_windows: tuple[int, ...] = ()
    sink_tokens: int | None = None
    chunked_context: bool | None = None
    decoding_mode: Literal["top_k", "top_p", "top_k_top_p", "beam_search"] | None = None
    multi_block_mode: bool | None = None
    context_fmha_fp32_acc: bool | None = None
    gpu_weights_fraction: float | None = None
    device_ids: tuple[tuple[int, ...], ...] = ()
    lora_cache: LoraCache | None = None
    guided_tokenizer_info: str | None = None
    logits_type: Literal["FP32", "FP16", "BF16"] = "FP32"


def tensorrt_llm_config(version: Version, settings: BackendSettings) -> str:
    """The configuration of `tensorrt_llm`, every parameter of the version written out.

    Raises UsageError for what the version does not have, naming those that do, and for settings that contradict.
    """
    if release_of(version) is None:
        raise _unfit(f"TensorRT-LLM {version} has no engines", f"those that do are {FIRST} to {LAST}")
    _check(version, settings)
    config = message.ModelConfig(name=TENSORRT_LLM, backend=BACKEND, max_batch_size=settings.max_batch_size)
    config.model_transaction_policy.decoupled = settings.decoupled
    config.dynamic_batching.preferred_batch_size.append(settings.max_batch_size)
    config.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    # From 0.12 on the backend reads it too, and takes 0 for no limit as Triton does.
    if settings.queue_size or in_span(version, "0.12", ""):
        config.dynamic_batching.default_queue_policy.max_queue_size = settings.queue_size
    _add_tensors(config, version, settings.logits_type)
    # The engine chooses its GPUs by itself or by `gpu_device_ids`.
    config.instance_group.add(count=max(1, len(settings.device_ids)), kind=message.ModelInstanceGroup.KIND_CPU)
    for key, value in _parameters(version, settings).items():
        config.parameters[key].string_value = value
    return render(config)


def _add_tensors(config: Any, version: Version, logits_type: str) -> None:
    for name, group in tensors(INPUTS, version):
        tensor = config.input.add(
            name=name,
            data_type=data_type(logits_type if group.data_type == LOGITS else group.data_type),
            dims=group.dims,
            optional=not group.required,
            allow_ragged_batch=group.ragged,
        )
        if group.scalar:
            tensor.reshape.SetInParent()
    for name, group in tensors(OUTPUTS, version):
        kind = logits_type if group.data_type == LOGITS else group.data_type
        config.output.add(name=name, data_type=data_type(kind), dims=group.dims)


def _parameters(version: Version, settings: BackendSettings) -> dict[str, str]:
    known = defaults(version)
    values = dict(known)
    for key, value in _wanted(settings).items():
        if key not in known:
            raise _unfit(f"TensorRT-LLM {version} has no parameter '{key}'", f"{spans(key)} have it")
        values[key] = value
        if READ_AS.get(key) in known:
            values[READ_AS[key]] = value
    return {key: value for key, value in values.items() if value or key not in LEFT_OUT_UNSET}


def _wanted(settings: BackendSettings) -> dict[str, str]:
    """The parameters that the settings say something of."""
    tokens, fraction = _kv_cache_tokens(settings), settings.kv_cache_fraction
    wanted: dict[str, str | float | bool | None] = {
        "gpt_model_path": settings.engine_folder,
        "gpt_model_type": settings.batching_strategy,
        "max_beam_width": settings.max_beam_width,
        "batch_scheduler_policy": settings.scheduler_policy,
        "exclude_input_in_output": settings.exclude_input,
        "max_tokens_in_paged_kv_cache": tokens,
        "kv_cache_free_gpu_mem_fraction": UNSET if tokens and fraction is None else fraction,
        "kv_cache_host_memory_bytes": settings.host_cache_bytes,
        "enable_kv_cache_reuse": settings.kv_reuse,
        "max_attention_window_size": ",".join(map(str, settings.attention_windows)) or None,
        "sink_token_length": settings.sink_tokens,
        "enable_chunked_context": settings.chunked_context,
        "decoding_mode": settings.decoding_mode,
        "multi_block_mode": settings.multi_block_mode,
        "enable_context_fmha_fp32_acc": settings.context_fmha_fp32_acc,
        "gpu_weights_percent": settings.gpu_weights_fraction,
        "gpu_device_ids": ";".join(",".join(map(str, group)) for group in settings.device_ids) or None,
    }
    if lora := settings.lora_cache:
        wanted |= {
            "lora_cache_optimal_adapter_size": lora.optimal_adapter_size,
            "lora_cache_max_adapter_size": lora.max_adapter_size,
            "lora_cache_gpu_memory_fraction": lora.gpu_fraction,
            "lora_cache_host_memory_bytes": lora.host_bytes,
            "lora_prefetch_dir": lora.prefetch_folder,
        }
    if settings.guided_tokenizer_info is not None:
        wanted |= {
            "guided_decoding_backend": "xgrammar",
            "xgrammar_tokenizer_info_path": settings.guided_tokenizer_info,
        }
    return {key: str(value) for key, value in wanted.items() if value is not None}


def _kv_cache_tokens(settings: BackendSettings) -> int | None:
    tokens = settings.kv_cache_tokens
    if settings.kv_cache_bytes is not None:
        if tokens is not None:
            raise _unfit("the KV cache has a size in tokens and one in bytes", "give one of them")
        if not settings.kv_bytes_per_token:
            raise _unfit("the KV cache has a size in bytes, which no version takes", "give kv_bytes_per_token")
        tokens = settings.kv_cache_bytes // settings.kv_bytes_per_token
    if tokens is not None and not 0 < tokens <= _MAX_INT32:
        raise _unfit(f"a KV cache of {tokens} tokens", f"it is 1 to {_MAX_INT32}")
    return tokens


def _check(version: Version, settings: BackendSettings) -> None:
    """What the backend would take and do otherwise, or not at all."""
    if not settings.engine_folder:
        raise _unfit("the folder of the engine is missing", "the backend does not load without it")
    fraction = settings.kv_cache_fraction
    if fraction is not None and not 0 < fraction <= 1:
        raise _unfit(f"a KV cache of {fraction:g} of the free memory", "the fraction is above 0 and at most 1")
    if in_span(version, "0.8", "0.12"):
        if settings.decoupled and settings.scheduler_policy == "max_utilization" and not settings.chunked_context:
            raise _unfit(
                f"TensorRT-LLM {version} takes guaranteed_no_evict instead of max_utilization for a decoupled model",
                "give chunked_context, or take 0.12 or later",
            )
        if len(settings.device_ids) > 1:
            raise _unfit(f"TensorRT-LLM {version} has no GPUs by instance", "0.12 and later have them")
    if len(settings.attention_windows) > 1 and in_span(version, "0.8", "0.13"):
        raise _unfit(f"TensorRT-LLM {version} takes one attention window", "0.13 and later take one a layer")
    if settings.logits_type != "FP32" and in_span(version, "0.8", "0.17"):
        raise _unfit(f"TensorRT-LLM {version} has logits of FP32 alone", "0.17 and later have others")


def _unfit(problem: str, hint: str) -> UsageError:
    return UsageError(problem, hint=hint, code="backend-setting")
