"""`convert_checkpoint.py` of Llama."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.standin import checkpoint, failures, gptq, llama
from tests.standin.checkpoint import Mapping, Quantization
from tests.standin.context import Context, Log, clock
from tests.standin.quantize import reach

TOOL = "convert_checkpoint.py"

_WEIGHT_ONLY = {
    "int8": "W8A16",
    "int4": "W4A16",
    "int8_gptq": "W8A16_GPTQ",
    "int4_gptq": "W4A16_GPTQ",
    "int4_awq": "W4A16_AWQ",
}


def run(arguments: argparse.Namespace, context: Context) -> None:
    log = Log(arguments.log_level if context.since("0.12") else "warning")
    started = time.monotonic()
    experts = _expert_ranks(arguments) if context.since("0.11") else 1
    mapping = Mapping(arguments.tp_size, arguments.pp_size, getattr(arguments, "cp_size", 1), experts)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    quantization = _quantization(arguments, context)
    if arguments.model_dir is None and arguments.meta_ckpt_dir is None:
        # The real script prints nothing either.
        made_up = checkpoint.config(_made_up(arguments), context, _dtype(arguments, {}), mapping, quantization, {})
        checkpoint.save_config(folder, made_up)
        if not context.since("0.9"):
            return
    elif arguments.meta_ckpt_dir is not None:
        assert arguments.model_dir is None, "Shall not specify both meta checkpoint dir and hugging face dir"
        raise NotImplementedError("the stand-in reads no Meta checkpoint")
    else:
        _convert(arguments, context, log, folder, mapping, quantization)
    print(f"Total time of converting checkpoints: {clock(time.monotonic() - started)}", flush=True)


def _convert(
    arguments: argparse.Namespace,
    context: Context,
    log: Log,
    folder: Path,
    mapping: Mapping,
    quantization: Quantization,
) -> None:
    _check(arguments, context)
    source = Path(arguments.model_dir)
    hugging_face = llama.read_config(source)
    dtype = _dtype(arguments, hugging_face)
    if context.since("0.12"):
        quantization = _found(hugging_face, context, log) or quantization
    options = {name: value for name, value in vars(arguments).items() if name in _COPIED}
    config = checkpoint.config(hugging_face, context, dtype, mapping, quantization, options)
    if not context.since("0.9"):
        checkpoint.save_config(folder, config)
    if (quantization.algorithm or "").endswith("_GPTQ"):
        loaded = gptq.load(source, _quantized_path(arguments, context), context)
    else:
        loaded = llama.load(source, context, log, by_transformers=not context.since("0.12"))
    assert config["num_attention_heads"] % mapping.tensor == 0, "num_attention_heads must be divisible by tp_size"

    def convert(rank: int) -> None:
        if not context.since("0.15"):
            failures.mismatched_call(TOOL)
        failures.fail_if_chosen(TOOL, context)
        began = time.monotonic()
        tensors = checkpoint.rank_tensors(loaded, rank, mapping, dtype, quantization.algorithm)
        if context.since("0.14"):
            print(f"Total time of reading and converting: {time.monotonic() - began:.3f} s", flush=True)
        began = time.monotonic()
        checkpoint.save_rank(folder, rank, tensors, TOOL, last=rank == mapping.files - 1)
        if rank == 0:
            wrong = {"dtype": "float32"} if failures.chosen(TOOL) == "wrong-config" else {}
            checkpoint.save_config(folder, config | wrong)
        if context.since("0.14"):
            print(f"Total time of saving checkpoint: {time.monotonic() - began:.3f} s", flush=True)

    failures.hang_workers_if_chosen(TOOL)
    _each(mapping.files, arguments.workers, convert)


_COPIED = (
    *("use_parallel_embedding", "embedding_sharding_dim", "disable_weight_only_quant_plugin", "use_prompt_tuning"),
    *("moe_num_experts", "moe_top_k", "moe_tp_mode", "enable_pos_shift", "dense_context_fmha", "max_lora_rank"),
    "lora_target_modules",
)
"""Flags that are keys of `config.json` in some version."""


def _each(ranks: int, workers: int, convert: Callable[[int], None]) -> None:
    if workers == 1:
        for rank in range(ranks):
            convert(rank)
        return
    failed = False
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for future in as_completed([pool.submit(convert, rank) for rank in range(ranks)]):
            try:
                future.result()
            except Exception:
                traceback.print_exc()
                failed = True
    assert not failed, "Checkpoint conversion failed, please check error log."


def _check(arguments: argparse.Namespace, context: Context) -> None:
    precision = arguments.weight_only_precision
    if context.since("0.15"):
        reads = "gptq" in precision or arguments.use_qserve
        assert reads or arguments.quant_ckpt_path is None, "only gptq weights or qserve need this option"
    elif context.since("0.9"):
        path = _quantized_path(arguments, context)
        assert precision == "int4_gptq" or path is None, "only gptq weights only needs this option"
    if arguments.smoothquant is None and not arguments.int8_kv_cache:
        return
    if context.since("0.9"):
        assert not arguments.load_by_shard, (
            "When using quantization, TRT-LLM needs to load the whole HF model, thus load by shard not supported"
        )
        assert context.since("0.11") or not arguments.load_model_on_cpu, (
            "When using quantization, TRT-LLM needs to load the model to GPU"
        )
    reach(getattr(arguments, "calib_dataset", "ccdv/cnn_dailymail"))


def _quantized_path(arguments: argparse.Namespace, context: Context) -> str | None:
    prefix = "ammo_" if not context.since("0.10") else "modelopt_" if not context.since("0.11") else ""
    return getattr(arguments, f"{prefix}quant_ckpt_path")


def _expert_ranks(arguments: argparse.Namespace) -> int:
    tensor, expert = arguments.moe_tp_size, arguments.moe_ep_size
    if tensor == -1 and expert == -1:
        tensor, expert = arguments.tp_size, 1
    elif tensor == -1:
        tensor = arguments.tp_size // expert
    elif expert == -1:
        expert = arguments.tp_size // tensor
    assert tensor * expert == arguments.tp_size, "moe_tp_size * moe_ep_size must equal to tp_size"
    return expert


def _dtype(arguments: argparse.Namespace, hugging_face: dict[str, Any]) -> str:
    return llama.dtype(hugging_face) if arguments.dtype == "auto" else arguments.dtype


def _quantization(arguments: argparse.Namespace, context: Context) -> Quantization:
    """The first flag that sets an algorithm wins; the others are ignored in silence."""
    algorithm: str | None = None
    settings: dict[str, Any] = {}
    precision = arguments.weight_only_precision
    if arguments.use_weight_only:
        algorithm = _WEIGHT_ONLY[precision]
    elif getattr(arguments, "use_fp8", False):
        algorithm = "FP8"
    elif getattr(arguments, "use_nvfp4", False):
        algorithm = "NVFP4"
    elif arguments.smoothquant:
        weights = "PER_CHANNEL" if arguments.per_channel else "PER_TENSOR"
        activations = "_PER_TOKEN" if arguments.per_token else "_PER_TENSOR" if arguments.per_channel else ""
        algorithm = f"W8A8_SQ_{weights}{activations}_PLUGIN"
        settings = {"smoothquant_val": arguments.smoothquant} if context.since("0.9") else {"sq_use_plugin": True}
    elif getattr(arguments, "use_fp8_rowwise", False):
        algorithm, settings = "FP8_PER_CHANNEL_PER_TOKEN", {"clamp_val": [-1200.0, 1200.0]}
    elif getattr(arguments, "use_qserve", False):
        algorithm = "W4A8_QSERVE_PER_GROUP" if arguments.per_group else "W4A8_QSERVE_PER_CHANNEL"
    # Up to 0.14 these precisions also count without --use_weight_only.
    if not context.since("0.15") and precision in ("int4_gptq", "int4_awq"):
        algorithm = _WEIGHT_ONLY[precision]
    if algorithm is not None and algorithm.endswith(("_GPTQ", "_AWQ")):
        awq = algorithm.endswith("_AWQ")
        settings = {"group_size": arguments.group_size, "has_zero_point": not awq, "pre_quant_scale": awq}
    if getattr(arguments, "use_meta_fp8_rowwise_recipe", False):
        settings["use_meta_recipe"] = True
    cache = "INT8" if arguments.int8_kv_cache else None
    if getattr(arguments, "fp8_kv_cache", False) and context.since("0.12"):
        cache = "FP8"
    return Quantization(algorithm, cache, tuple(settings.items()))


def _found(hugging_face: dict[str, Any], context: Context, log: Log) -> Quantization | None:
    """How the weights are quantized already, which counts more than any flag."""
    stored: dict[str, Any] = hugging_face.get("quantization_config") or {}
    method = stored.get("quant_method")
    if method == "fbgemm_fp8":
        log.info("Load quantization configs from huggingface model_config.")
        bound = stored.get("activation_scale_ub", 1200.0)
        return Quantization("FP8_PER_CHANNEL_PER_TOKEN", None, (("clamp_val", [-bound, bound]),))
    if method == "gptq" and context.since("0.16"):
        if stored.get("desc_act"):
            raise ValueError("GPTQ with desc_act=True is not implemented!")
        log.info("Load quantization configs from huggingface model_config.")
        settings = {"group_size": stored.get("group_size", 128), "has_zero_point": stored.get("sym", False)}
        return Quantization("W4A16_GPTQ", None, tuple(settings.items()))
    return None


def _made_up(arguments: argparse.Namespace) -> dict[str, Any]:
    """The config that flags alone describe, in Hugging Face's form."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": arguments.vocab_size,
        "hidden_size": arguments.n_embd,
        "num_hidden_layers": arguments.n_layer,
        "num_attention_heads": arguments.n_head,
        "num_key_value_heads": arguments.n_kv_head or arguments.n_head,
        "intermediate_size": arguments.inter_size,
        "hidden_act": arguments.hidden_act,
        "rms_norm_eps": arguments.rms_norm_eps,
        "max_position_embeddings": arguments.n_positions,
        "rope_theta": arguments.rotary_base,
    }
