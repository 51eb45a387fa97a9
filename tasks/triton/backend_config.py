"""The `config.pbtxt` of the model `tensorrt_llm`: the engine in TensorRT-LLM's C++ backend."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from infra.errors import UsageError
from tasks.triton.config import TENSORRT_LLM
from tasks.triton.protobuf import KIND_CPU, ModelConfig, data_type, new_config, render
from tasks.trtllm.backend.parameters import LEFT_OUT_UNSET, READ_AS, UNSET, defaults
from tasks.trtllm.backend.rules import check_version
from tasks.trtllm.backend.tensors import ENGINE_INPUTS, ENGINE_OUTPUTS, LOGITS, LORA, tensors
from tasks.trtllm.backend.values import backend_values
from tasks.trtllm.limits import LogitsType
from tasks.trtllm.releases import FIRST, LAST, in_span, release_of
from tasks.trtllm.serving import TensorRtServing

_NOTHING: Mapping[str, str] = {}

BACKEND = "tensorrtllm"
"""NVIDIA's templates from 0.10 on also allow `python`, which knows fewer parameters."""


def tensorrt_llm_config(
    version: Version,
    serving: TensorRtServing,
    *,
    engine_folder: str,
    max_batch_size: int,
    kv_cache_tokens: int | None,
    logits_type: LogitsType = "FP32",
    lora_type: LogitsType = "FP16",
    name: str = TENSORRT_LLM,
    further: Mapping[str, str] = _NOTHING,
) -> str:
    """The configuration of `tensorrt_llm`, or of another `name`, with every parameter of the version written out.

    `max_batch_size` bounds the rows of one request to Triton, not what the engine runs at once. `logits_type` is the
    one of the engine's build, `lora_type` that of its adapters. `further` are parameters that the engine itself asks
    for. Raises UsageError `serving-unfit` for a setting that the version lacks, naming the versions that have it.
    """
    if release_of(version) is None:
        raise UsageError(
            f"TensorRT-LLM {version} has no engines", hint=f"versions {FIRST} to {LAST} have them", code="serving-unfit"
        )
    check_version(version, serving)
    config = new_config(name, backend=BACKEND, max_batch_size=max_batch_size)
    config.model_transaction_policy.decoupled = serving.decoupled
    config.dynamic_batching.preferred_batch_size.append(max_batch_size)
    config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_microseconds
    # From 0.12 on the backend reads the queue's size too, and takes 0 for no limit as Triton does.
    if in_span(version, "0.12", ""):
        config.dynamic_batching.default_queue_policy.max_queue_size = serving.queue_size or 0
    # Up to 0.16 the backend writes FP32 logits, whatever the build.
    _add_tensors(config, version, logits_type if in_span(version, "0.17", "") else "FP32", lora_type)
    # The engine chooses its GPUs by itself or by `gpu_device_ids`.
    config.instance_group.add(count=max(1, len(serving.gpu_device_ids)), kind=KIND_CPU)
    for key, value in {**_parameters(version, serving, engine_folder, kv_cache_tokens), **further}.items():
        config.parameters[key].string_value = value
    return render(config)


def _add_tensors(config: ModelConfig, version: Version, logits_type: str, lora_type: str) -> None:
    own = {LOGITS: logits_type, LORA: lora_type}
    for name, group in tensors(ENGINE_INPUTS, version):
        tensor = config.input.add(
            name=name,
            data_type=data_type(own.get(group.data_type, group.data_type)),
            dims=group.dims,
            optional=not group.required,
            allow_ragged_batch=group.ragged,
        )
        if group.scalar:
            tensor.reshape.SetInParent()
    for name, group in tensors(ENGINE_OUTPUTS, version):
        config.output.add(name=name, data_type=data_type(own.get(group.data_type, group.data_type)), dims=group.dims)


def _parameters(
    version: Version, serving: TensorRtServing, engine_folder: str, kv_cache_tokens: int | None
) -> dict[str, str]:
    values = dict(defaults(version))
    if kv_cache_tokens is not None:
        # Otherwise the backend's default fraction would limit the cache too.
        values["kv_cache_free_gpu_mem_fraction"] = UNSET
    wanted = backend_values(serving, kv_cache_tokens)
    # If a request wants the prompt before the answer, the model `llm` adds it.
    wanted |= {"gpt_model_path": engine_folder, "exclude_input_in_output": "True"}
    for key, value in wanted.items():
        values[key] = value
        if READ_AS.get(key) in values:
            values[READ_AS[key]] = value
    return {key: value for key, value in values.items() if value or key not in LEFT_OUT_UNSET}
