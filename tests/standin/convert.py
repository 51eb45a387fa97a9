"""`convert_checkpoint.py` of each converter."""

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
from tests.standin.converters import refuse
from tests.standin.layers import FAMILIES
from tests.standin.quantize import reach

TOOL = "convert_checkpoint.py"

_WEIGHT_ONLY = {
    "int8": "W8A16",
    "int4": "W4A16",
    "int8_gptq": "W8A16_GPTQ",
    "int4_gptq": "W4A16_GPTQ",
    "int4_awq": "W4A16_AWQ",
}


def run(arguments: argparse.Namespace, context: Context, converter: str = "llama") -> None:
    """Convert as the script of `converter` does, whose options are spelled in several ways."""
    log = Log(arguments.log_level if context.since("0.12") and "log_level" in arguments else "warning")
    started = time.monotonic()
    given = argparse.Namespace(**_USUAL | {_PLAIN.get(name, name): each for name, each in vars(arguments).items()})
    given.use_weight_only |= getattr(arguments, "use_weight_only_with_precision", None) is not None
    experts = _expert_ranks(given) if "moe_tp_size" in given else 1
    mapping = Mapping(given.tp_size, given.pp_size, given.cp_size, experts)
    folder = Path(given.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    quantization = _quantization(given, context)
    if given.model_dir is None and given.meta_ckpt_dir is None:
        assert converter == "llama", "the stand-in makes up weights of a Llama alone"
        # The real script prints nothing either.
        made_up = checkpoint.config(_made_up(given), context, _dtype(given, {}), mapping, quantization, {})
        checkpoint.save_config(folder, made_up)
        if not context.since("0.9"):
            return
    elif given.meta_ckpt_dir is not None:
        assert given.model_dir is None, "Shall not specify both meta checkpoint dir and hugging face dir"
        raise NotImplementedError("the stand-in reads no Meta checkpoint")
    else:
        _convert(given, context, log, folder, mapping, quantization, converter)
    print(f"Total time of converting checkpoints: {clock(time.monotonic() - started)}", flush=True)


def _convert(
    arguments: argparse.Namespace,
    context: Context,
    log: Log,
    folder: Path,
    mapping: Mapping,
    quantization: Quantization,
    converter: str,
) -> None:
    if converter == "llama":
        _check(arguments, context)
    source = Path(arguments.model_dir)
    hugging_face = llama.read_config(source)
    refuse(converter, vars(arguments), hugging_face, context)
    family = FAMILIES.get(converter)
    if family is None:
        raise NotImplementedError(f"the stand-in reads no weights for the converter of {converter}")
    named = hugging_face["architectures"][0]
    # A converter takes every model for one of its own family.
    architecture = named if named in family else family[0]
    dtype = _dtype(arguments, hugging_face)
    if context.since("0.12"):
        quantization = _found(hugging_face, context, log) or quantization
    options = {name: value for name, value in vars(arguments).items() if name in _COPIED}
    taken_for = hugging_face | {"architectures": [architecture]}
    config = checkpoint.config(taken_for, context, dtype, mapping, quantization, options)
    if architecture != named and (not context.since("0.11") or context.since("0.14")):
        config["architecture"] = named
    if not context.since("0.9"):
        checkpoint.save_config(folder, config)
    by_transformers = not context.since("0.12")
    if (quantization.algorithm or "").endswith("_GPTQ"):
        loaded = gptq.load(source, _quantized_path(arguments, context), context)
    else:
        loaded = llama.load(source, context, log, by_transformers=by_transformers, architecture=architecture)
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


_PLAIN = {
    "output_model_dir": "output_dir",
    "world_size": "tp_size",
    "use_weight_only_with_precision": "weight_only_precision",
}
"""The usual name of an option that a converter spells in its own way."""
_USUAL: dict[str, Any] = {
    **dict.fromkeys(("tp_size", "pp_size", "cp_size", "workers"), 1),
    **dict.fromkeys(("dtype", "meta_ckpt_dir", "weight_only_precision", "smoothquant")),
    **dict.fromkeys(("use_weight_only", "int8_kv_cache", "per_channel", "per_token", "per_group"), False),
    "group_size": 128,
}
"""The options that this stand-in reads, as a converter without them goes on."""

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
    return llama.dtype(hugging_face) if arguments.dtype in ("auto", None) else arguments.dtype


def _quantization(arguments: argparse.Namespace, context: Context) -> Quantization:
    """The first flag that sets an algorithm wins; the others are ignored in silence."""
    algorithm: str | None = None
    settings: dict[str, Any] = {}
    precision: str = arguments.weight_only_precision or ""
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
