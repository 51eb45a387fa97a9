"""The identities of a checkpoint and an engine: what of a recipe changes them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from tasks.models.recipe import TrtEngineRecipe
from tasks.store.identity import Identity
from tasks.trtllm.architectures import is_converted_as_llama
from tasks.trtllm.recipe import AWQ
from tasks.trtllm.tools import commands

_CONVERT_VERSION = 1
_BUILD_VERSION = 2

# The fields that convert_checkpoint.py and quantize.py get. trtllm-build gets the others.
_CHECKPOINT_FIELDS = (
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "tp_size",
    "pp_size",
    "cp_size",
    "moe_tp_size",
    "moe_ep_size",
)
_ENGINE_FIELDS = (
    "max_batch_size",
    "max_seq_len",
    "max_input_len",
    "max_num_tokens",
    "max_beam_width",
    "kv_cache_type",
    "tokens_per_block",
    "paged_context_fmha",
    "fused_mlp",
    "fast_build",
    "plugins",
    "lora",
)


def checkpoint_identity(recipe: TrtEngineRecipe, inputs: Mapping[str, Identity]) -> Identity:
    """`inputs` are the snapshots, by role."""
    fields = _fields(recipe, _CHECKPOINT_FIELDS)
    calibrated = commands.is_quantized_by_calibration(recipe)
    if calibrated or recipe.kv_cache_dtype == "int8":
        fields["calibration"] = recipe.calibration.model_dump(mode="json")
    if recipe.quantization in AWQ:
        fields["awq_block_size"] = recipe.awq_block_size
    if not calibrated and recipe.architecture is not None and not is_converted_as_llama(recipe.architecture):
        # Llama's converter made every checkpoint before the others were known.
        fields["architecture"] = recipe.architecture
    if not calibrated and recipe.variant is not None:
        fields["variant"] = recipe.variant
    if recipe.speculation is not None and (converted := recipe.speculation.converted) is not None:
        fields["speculation"] = converted
    extra = recipe.extra_args.quantize if calibrated else recipe.extra_args.convert
    return Identity.of(
        "convert",
        _CONVERT_VERSION,
        inputs=inputs,
        fields={
            "kind": "trt-engine",
            **fields,
            "extra_args": list(extra),
            "runtime": {"tensorrt_llm": recipe.runtime.tensorrt_llm},
        },
    )


def engine_identity(recipe: TrtEngineRecipe, checkpoint: Identity, draft: Identity | None) -> Identity:
    """`draft` is the engine of a draft model, which becomes a part of this one."""
    runtime: dict[str, JsonValue] = {
        "tensorrt_llm": recipe.runtime.tensorrt_llm,
        "tensorrt": recipe.runtime.planned_tensorrt,
        "architecture": recipe.runtime.arch,
    }
    if not recipe.portable:
        # TensorRT measures kernels on this product. On other products of the architecture an engine runs slower.
        runtime["gpu"] = recipe.runtime.gpu
    given = recipe.speculation
    speculation: dict[str, JsonValue] | None = (
        None if given is None else {"mode": given.mode, "max_draft_len": given.max_draft_len}
    )
    return Identity.of(
        "build",
        _BUILD_VERSION,
        inputs={"checkpoint": checkpoint} if draft is None else {"checkpoint": checkpoint, "draft": draft},
        fields={
            "kind": "trt-engine",
            **_fields(recipe, _ENGINE_FIELDS),
            "speculation": speculation,
            "extra_args": list(recipe.extra_args.build),
            "runtime": runtime,
        },
    )


def _fields(recipe: TrtEngineRecipe, names: tuple[str, ...]) -> dict[str, JsonValue]:
    document: dict[str, JsonValue] = recipe.model_dump(mode="json", include=set(names))
    return {name: document[name] for name in names}
