"""What a release sets in NVIDIA's templates, in the names that the templates of each version have for it."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from infra.errors import TemplateError
from tasks.triton.upstream_templates import MODELS
from tasks.trtllm.backend.rules import check_version
from tasks.trtllm.backend.values import PLACEHOLDERS, backend_values
from tasks.trtllm.serving import TensorRtServing

Values = Mapping[str, Mapping[str, str]]
"""By model, then by placeholder."""


def upstream_values(
    serving: TensorRtServing,
    version: str,
    *,
    engine_folder: str,
    tokenizer_folder: str,
    max_batch_size: int,
    kv_cache_tokens: int | None = None,
) -> dict[str, dict[str, str]]:
    """The values for the templates of a version of TensorRT-LLM, by model and placeholder, as text.

    Folders are absolute and as the server sees them. `kv_cache_tokens` is the size of the cache, if the model's file
    gives it in bytes. Raises UsageError `serving-unfit` for a setting that the version lacks, and TemplateError
    `template-unknown-key` for one that its templates have no placeholder for, or an extra value that is set already.
    """
    release = Version(version).release
    check_version(Version(version), serving)
    if len(serving.gpu_device_ids) > 1:
        raise TemplateError(
            "gpu_device_ids: NVIDIA's templates have one instance of the engine",
            hint="Use the native layout, or name the GPUs of one instance.",
            code="template-unknown-key",
        )
    values = {model: {"triton_max_batch_size": str(max_batch_size)} for model in MODELS}
    values["preprocessing"] |= {
        "tokenizer_dir": tokenizer_folder,
        "preprocessing_instance_count": str(serving.preprocessing_instances),
    }
    values["postprocessing"] |= {
        "tokenizer_dir": tokenizer_folder,
        "postprocessing_instance_count": str(serving.postprocessing_instances),
    }
    values["tensorrt_llm_bls"] |= {
        "decoupled_mode": str(serving.decoupled),
        "bls_instance_count": str(serving.bls_instances),
        "accumulate_tokens": str(serving.accumulate_tokens),
    }
    values["tensorrt_llm"] |= _of_the_engine(serving, engine_folder, kv_cache_tokens)
    # These two placeholders came with 0.12 and 0.19 (tags of tensorrtllm_backend).
    if release >= (0, 12):
        values["preprocessing"]["engine_dir"] = engine_folder
    if release >= (0, 19):
        values["tensorrt_llm"]["tokenizer_dir"] = tokenizer_folder
    for model, extra in serving.extra.items():
        of_model = values.setdefault(model, {})
        if twice := sorted(extra.keys() & of_model.keys()):
            raise TemplateError(
                f"{model}: the serving parameters set {', '.join(twice)} already",
                hint="Set the parameter, and leave the extra value out.",
                code="template-unknown-key",
            )
        of_model |= extra
    return values


def _of_the_engine(serving: TensorRtServing, engine_folder: str, kv_cache_tokens: int | None) -> dict[str, str]:
    parameters = backend_values(serving, kv_cache_tokens or serving.kv_cache_tokens) | {"gpt_model_path": engine_folder}
    return {
        "decoupled_mode": str(serving.decoupled),
        "max_queue_delay_microseconds": str(serving.queue_delay_microseconds),
        **({} if serving.queue_size is None else {"max_queue_size": str(serving.queue_size)}),
        **{PLACEHOLDERS.get(key, key): value for key, value in parameters.items()},
    }
