"""What a release sets in NVIDIA's templates, in the names that the templates of each version have for it."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from infra.errors import TemplateError
from tasks.triton.upstream_source import MODELS
from tasks.trtllm.serving import TensorRtServing

Values = Mapping[str, Mapping[str, str]]
"""By model, then by placeholder."""


def upstream_values(
    parameters: TensorRtServing, version: str, *, engine_folder: str, tokenizer_folder: str, max_batch_size: int
) -> dict[str, dict[str, str]]:
    """The values for the templates of a version of TensorRT-LLM, by model and placeholder, as text.

    Folders are absolute and as the server sees them. Raises TemplateError, code `template-unknown-key`, for what the
    version cannot do, and for an extra value that one of the parameters sets already.
    """
    release = Version(version).release
    _check(parameters, version, release)
    values = {model: {"triton_max_batch_size": str(max_batch_size)} for model in MODELS}
    values["preprocessing"] |= {
        "tokenizer_dir": tokenizer_folder,
        "preprocessing_instance_count": str(parameters.preprocessing_instances),
    }
    values["postprocessing"] |= {
        "tokenizer_dir": tokenizer_folder,
        "postprocessing_instance_count": str(parameters.postprocessing_instances),
    }
    values["tensorrt_llm_bls"] |= {
        "decoupled_mode": str(parameters.decoupled),
        "bls_instance_count": str(parameters.bls_instances),
        "accumulate_tokens": str(parameters.accumulate_tokens),
    }
    values["tensorrt_llm"] |= _of_the_engine(parameters, engine_folder)
    # Tags of tensorrtllm_backend: these two placeholders came with 0.12 and 0.19.
    if release >= (0, 12):
        values["preprocessing"]["engine_dir"] = engine_folder
    if release >= (0, 19):
        values["tensorrt_llm"]["tokenizer_dir"] = tokenizer_folder
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


def _of_the_engine(parameters: TensorRtServing, engine_folder: str) -> dict[str, str]:
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
        "engine_dir": engine_folder,
        "batching_strategy": parameters.batching_strategy,
        "max_beam_width": str(parameters.max_beam_width),
        "max_queue_delay_microseconds": str(parameters.queue_delay_microseconds),
        **{name: str(value) for name, value in optional.items() if value is not None},
    }


def _check(parameters: TensorRtServing, version: str, release: tuple[int, ...]) -> None:
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
