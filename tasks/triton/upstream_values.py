"""What a release sets in NVIDIA's templates, in the names that the templates of each version have for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from packaging.version import Version

from infra.errors import TemplateError
from tasks.triton.upstream_source import MODELS

Values = Mapping[str, Mapping[str, str]]
"""By model, then by placeholder."""


@dataclass(frozen=True)
class UpstreamParameters:
    """Serving parameters of an engine. None or empty: what the version's backend does by itself.

    Folders are absolute and as the server sees them. `extra` holds further placeholders by model.
    """

    engine_folder: str
    tokenizer_folder: str
    max_batch_size: int
    decoupled: bool = False
    max_beam_width: int = 1
    batching_strategy: Literal["inflight_fused_batching", "inflight_batching", "v1"] = "inflight_fused_batching"
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] | None = None
    kv_cache_tokens: int | None = None
    kv_cache_fraction: float | None = None
    """Of the GPU memory that is free once the engine is loaded, 0 to 1."""
    kv_cache_reuse: bool | None = None
    host_cache_bytes: int | None = None
    attention_window: tuple[int, ...] = ()
    """Tokens; several are one a layer, repeated."""
    chunked_context: bool | None = None
    exclude_input_in_output: bool | None = None
    accumulate_tokens: bool = False
    queue_delay_microseconds: int = 0
    queue_size: int | None = None
    """Requests; 0 is without limit."""
    gpu_device_ids: tuple[int, ...] = ()
    preprocessing_instances: int = 1
    postprocessing_instances: int = 1
    bls_instances: int = 1
    extra: Values = field(default_factory=dict[str, dict[str, str]])


def upstream_values(parameters: UpstreamParameters, version: str) -> dict[str, dict[str, str]]:
    """The values for the templates of a version of TensorRT-LLM, by model and placeholder, as text.

    Raises TemplateError, code `template-unknown-key`, for what the version cannot do, and for an extra value that one
    of the parameters sets already.
    """
    release = Version(version).release
    _check(parameters, version, release)
    values = {model: {"triton_max_batch_size": str(parameters.max_batch_size)} for model in MODELS}
    values["preprocessing"] |= {
        "tokenizer_dir": parameters.tokenizer_folder,
        "preprocessing_instance_count": str(parameters.preprocessing_instances),
    }
    values["postprocessing"] |= {
        "tokenizer_dir": parameters.tokenizer_folder,
        "postprocessing_instance_count": str(parameters.postprocessing_instances),
    }
    values["tensorrt_llm_bls"] |= {
        "decoupled_mode": str(parameters.decoupled),
        "bls_instance_count": str(parameters.bls_instances),
        "accumulate_tokens": str(parameters.accumulate_tokens),
    }
    values["tensorrt_llm"] |= _of_the_engine(parameters)
    # Tags of tensorrtllm_backend: these two placeholders came with 0.12 and 0.19.
    if release >= (0, 12):
        values["preprocessing"]["engine_dir"] = parameters.engine_folder
    if release >= (0, 19):
        values["tensorrt_llm"]["tokenizer_dir"] = parameters.tokenizer_folder
    for model, extra in parameters.extra.items():
        of_model = values.setdefault(model, {})
        if twice := sorted(extra.keys() & of_model.keys()):
            raise TemplateError(
                f"{model}: {', '.join(twice)} follow from the serving parameters",
                hint="Set the parameter, and leave the extra value out.",
                code="template-unknown-key",
            )
        of_model |= extra
    return values


def _of_the_engine(parameters: UpstreamParameters) -> dict[str, str]:
    optional = {
        "batch_scheduler_policy": parameters.scheduler_policy,
        "max_tokens_in_paged_kv_cache": parameters.kv_cache_tokens,
        "kv_cache_free_gpu_mem_fraction": parameters.kv_cache_fraction,
        "enable_kv_cache_reuse": parameters.kv_cache_reuse,
        "kv_cache_host_memory_bytes": parameters.host_cache_bytes,
        "max_attention_window_size": ",".join(map(str, parameters.attention_window)) or None,
        "enable_chunked_context": parameters.chunked_context,
        "exclude_input_in_output": parameters.exclude_input_in_output,
        "max_queue_size": parameters.queue_size,
        "gpu_device_ids": ",".join(map(str, parameters.gpu_device_ids)) or None,
    }
    return {
        "decoupled_mode": str(parameters.decoupled),
        "engine_dir": parameters.engine_folder,
        "batching_strategy": parameters.batching_strategy,
        "max_beam_width": str(parameters.max_beam_width),
        "max_queue_delay_microseconds": str(parameters.queue_delay_microseconds),
        **{name: str(value) for name, value in optional.items() if value is not None},
    }


def _check(parameters: UpstreamParameters, version: str, release: tuple[int, ...]) -> None:
    # Read in the tags of tensorrtllm_backend: the placeholders of tensorrt_llm/config.pbtxt, and for the windows
    # GetParameter<int32_t> in model_instance_state.cc, which up to 0.12 takes the first number and drops the rest.
    first_with = {
        "host_cache_bytes": ((0, 10), parameters.host_cache_bytes is not None),
        "queue_size": ((0, 12), parameters.queue_size is not None),
        "attention_window of several sizes": ((0, 13), len(parameters.attention_window) > 1),
    }
    for name, (first, wanted) in first_with.items():
        if wanted and release < first:
            raise TemplateError(
                f"TensorRT-LLM {version} has no {name}",
                hint=f"Versions {first[0]}.{first[1]} to 1.2 have it; leave it out, or serve with one of them.",
                code="template-unknown-key",
            )
