"""The `config.pbtxt` of the `tensorrt_llm` model: the engine itself, in TensorRT-LLM's C++ backend."""

from __future__ import annotations

from typing import Any

from packaging.version import Version

from infra.errors import UsageError
from tasks.triton.config import TENSORRT_LLM, data_type, message, render
from tasks.trtllm.backend.parameters import LEFT_OUT_UNSET, READ_AS, UNSET, defaults
from tasks.trtllm.backend.rules import check_version
from tasks.trtllm.backend.tensors import ENGINE_INPUTS, ENGINE_OUTPUTS, LOGITS, tensors
from tasks.trtllm.backend.values import backend_values
from tasks.trtllm.limits import LogitsType
from tasks.trtllm.releases import FIRST, LAST, in_span, release_of
from tasks.trtllm.serving import TensorRtServing

BACKEND = "tensorrtllm"
"""Templates from 0.10 on also allow `python`, which knows fewer parameters."""


def tensorrt_llm_config(
    version: Version,
    serving: TensorRtServing,
    *,
    engine_folder: str,
    max_batch_size: int,
    kv_cache_tokens: int | None,
    logits_type: LogitsType = "FP32",
) -> str:
    """The configuration of `tensorrt_llm`, every parameter of the version written out.

    `max_batch_size` bounds the rows of one request to Triton, not what the engine runs at once. `logits_type` is that
    of the engine's build. Raises UsageError for what the version does not have, naming those that do.
    """
    if release_of(version) is None:
        raise UsageError(
            f"TensorRT-LLM {version} has no engines", hint=f"those that do are {FIRST} to {LAST}", code="serving-unfit"
        )
    check_version(version, serving)
    config = message.ModelConfig(name=TENSORRT_LLM, backend=BACKEND, max_batch_size=max_batch_size)
    config.model_transaction_policy.decoupled = serving.decoupled
    config.dynamic_batching.preferred_batch_size.append(max_batch_size)
    config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_microseconds
    # From 0.12 on the backend reads it too, and takes 0 for no limit as Triton does.
    if in_span(version, "0.12", ""):
        config.dynamic_batching.default_queue_policy.max_queue_size = serving.queue_size or 0
    # Until 0.16 the backend writes FP32 whatever the build.
    _add_tensors(config, version, logits_type if in_span(version, "0.17", "") else "FP32")
    # The engine chooses its GPUs by itself or by `gpu_device_ids`.
    config.instance_group.add(count=max(1, len(serving.gpu_device_ids)), kind=message.ModelInstanceGroup.KIND_CPU)
    for key, value in _parameters(version, serving, engine_folder, kv_cache_tokens).items():
        config.parameters[key].string_value = value
    return render(config)


def _add_tensors(config: Any, version: Version, logits_type: str) -> None:
    for name, group in tensors(ENGINE_INPUTS, version):
        tensor = config.input.add(
            name=name,
            data_type=data_type(logits_type if group.data_type == LOGITS else group.data_type),
            dims=group.dims,
            optional=not group.required,
            allow_ragged_batch=group.ragged,
        )
        if group.scalar:
            tensor.reshape.SetInParent()
    for name, group in tensors(ENGINE_OUTPUTS, version):
        kind = logits_type if group.data_type == LOGITS else group.data_type
        config.output.add(name=name, data_type=data_type(kind), dims=group.dims)


def _parameters(
    version: Version, serving: TensorRtServing, engine_folder: str, kv_cache_tokens: int | None
) -> dict[str, str]:
    values = defaults(version)
    if kv_cache_tokens is not None:
        # Else the backend's own fraction would count beside the number.
        values["kv_cache_free_gpu_mem_fraction"] = UNSET
    wanted = backend_values(serving, kv_cache_tokens)
    # The model `llm` puts the prompt before the answer where a request wants it.
    wanted |= {"gpt_model_path": engine_folder, "exclude_input_in_output": "True"}
    for key, value in wanted.items():
        values[key] = value
        if READ_AS.get(key) in values:
            values[READ_AS[key]] = value
    return {key: value for key, value in values.items() if value or key not in LEFT_OUT_UNSET}
