"""The section `build_config` of an engine's `config.json`: made from flags, then fitted to the model."""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

from tests.standin.context import Context, Log
from tests.standin.facts import KVCacheType, keys

_MODES = ("draft_tokens_external", "medusa", "lookahead_decoding", "explicit_draft_tokens", "eagle")
_FP8 = ("FP8", "W4A8_AWQ", "NVFP4")


def build_config(arguments: argparse.Namespace, context: Context, log: Log) -> dict[str, Any]:
    """The values of the flags, under this version's keys."""
    given = vars(arguments)
    plugins = _plugins(given, context, log)
    if arguments.build_config is not None:
        stored: dict[str, Any] = json.loads(Path(arguments.build_config).read_text())
        return _defaults(context) | stored | {"plugin_config": plugins}
    build = _defaults(context)
    build |= {name: given[name] for name in build if name in given}
    build["plugin_config"] = plugins
    if given.get("gather_all_token_logits"):
        build |= {"gather_context_logits": True, "gather_generation_logits": True}
    if "speculative_decoding_mode" in build:
        mode = given["speculative_decoding_mode"]
        build["speculative_decoding_mode"] = 1 << (_MODES.index(mode) + 1 if mode else 0)
    if "kv_cache_type" in build:
        _choose_cache(given.get("kv_cache_type"), build, context)
    if "force_num_profiles" in build:
        build["force_num_profiles"] = given.get("builder_force_num_profiles")
    if "auto_parallel_config" in build:
        sizes = {"world_size": given["auto_parallel"], "gpus_per_node": given["gpus_per_node"]}
        build["auto_parallel_config"] = build["auto_parallel_config"] | sizes
    if "lora_config" in build and plugins["lora_plugin"] is not None:
        lora = {name: given[name] for name in build["lora_config"] if given.get(name) is not None}
        build["lora_config"] |= lora
    return build


def fit(build: dict[str, Any], model: dict[str, Any], context: Context, log: Log) -> dict[str, Any]:
    """The same for one model: lengths deduced and clipped, plugins that do not fit switched off."""
    build = copy.deepcopy(build)
    plugins = build["plugin_config"]
    if "dtype" in plugins:
        plugins["dtype"] = model["dtype"]
    plugins["nccl_plugin"] = model["dtype"] if model["mapping"]["world_size"] > 1 else None
    log.info(f"Set {_prefix(context)}nccl_plugin to {plugins['nccl_plugin']}.")
    if context.since("0.11"):
        _fit_lengths(build, model, log)
    else:
        _fit_tokens(build, log)
    _fit_speculation(build, log)
    _fit_attention(plugins, model["quantization"], context, log)
    if context.since("0.16") and plugins["reduce_fusion"] and model["mapping"]["tp_size"] == 1:
        log.warning("Overriding reduce_fusion to False")
        plugins["reduce_fusion"] = False
    return build


def _defaults(context: Context) -> dict[str, Any]:
    build = copy.deepcopy(keys("build_config", context.version))
    if "lora_config" in build:
        build["lora_config"] = copy.deepcopy(keys("lora_config", context.version))
    return build


def _plugins(given: dict[str, Any], context: Context, log: Log) -> dict[str, Any]:
    plugins = keys("plugin_config", context.version)
    prefix = _prefix(context)
    switches = {"paged_kv_cache"} | {name for name, value in plugins.items() if isinstance(value, bool)}
    for name, value in given.items():
        if name not in plugins:
            continue
        if value == "disable":
            value = False if name in switches else None
        elif value == "enable":
            value = True
        plugins[name] = value
        log.info(f"Set {prefix}{name} to {value}.")
    if given.get("fast_build"):
        plugins["manage_weights"] = True
        log.info(f"Set {prefix}manage_weights to True.")
    return plugins


def _prefix(context: Context) -> str:
    """What stands before a plugin's name in the log."""
    return "PluginConfig." if context.since("1.2") else ""


def _choose_cache(chosen: KVCacheType | None, build: dict[str, Any], context: Context) -> None:
    """From 0.13 on the type of the KV cache and the plugin's paging must agree."""
    plugins = build["plugin_config"]
    paged = plugins["paged_kv_cache"]
    if chosen is None:
        chosen = KVCacheType.CONTINUOUS if paged is False else KVCacheType.PAGED
    assert paged is None or paged == (chosen is KVCacheType.PAGED)
    plugins["paged_kv_cache"] = chosen is KVCacheType.PAGED
    build["kv_cache_type"] = chosen.value if context.since("1.2") else chosen.name


def _fit_lengths(build: dict[str, Any], model: dict[str, Any], log: Log) -> None:
    scaling: dict[str, Any] = model.get("rotary_scaling") or {}
    kind = scaling.get("type", scaling.get("rope_type"))
    factor = 1 if kind in (None, "su", "longrope", "llama3") else scaling.get("factor", 1.0)
    limit = model["max_position_embeddings"]
    if build["max_seq_len"] is None:
        build["max_seq_len"] = math.ceil(limit * factor)
        log.info(f"max_seq_len is not specified, using deduced value {build['max_seq_len']}")
    elif build["max_seq_len"] > limit * factor:
        log.warning(
            f"max_seq_len {build['max_seq_len']} is larger than max_position_embeddings {limit} * rotary scaling "
            f"{factor}, the model accuracy might be affected"
        )
    if build["max_input_len"] > build["max_seq_len"]:
        log.warning(
            f"max_input_len is {build['max_input_len']} is larger than max_seq_len {build['max_seq_len']}, "
            "clipping it to max_seq_len"
        )
        build["max_input_len"] = build["max_seq_len"]
    plugins = build["plugin_config"]
    most = build["max_batch_size"] * build["max_seq_len"]
    if not plugins["remove_input_padding"]:
        build["max_num_tokens"] = most
        return
    build["max_num_tokens"] = min(build["max_num_tokens"] or most, most)
    if build["opt_num_tokens"] is None and not plugins["multiple_profiles"]:
        build["opt_num_tokens"] = min(build["max_batch_size"] * build["max_beam_width"], build["max_num_tokens"])
        log.warning(
            "remove_input_padding is enabled, while opt_num_tokens is not set, setting to "
            "max_batch_size*max_beam_width. \n"
        )
    if plugins["context_fmha"]:
        log.warning("padding removal and fMHA are both enabled, max_input_len is not required and will be ignored")


def _fit_tokens(build: dict[str, Any], log: Log) -> None:
    most = build["max_batch_size"] * build["max_input_len"]
    if build["plugin_config"]["remove_input_padding"]:
        if build["max_num_tokens"] is None:
            log.warning(
                "remove_input_padding is enabled, while max_num_tokens is not set, setting to "
                "max_batch_size*max_input_len. \n"
            )
        build["max_num_tokens"] = min(build["max_num_tokens"] or most, most)
    if "opt_num_tokens" in build and build["opt_num_tokens"] is None:
        build["opt_num_tokens"] = min(
            build["max_batch_size"] * build["max_beam_width"], build["max_num_tokens"] or most
        )


def _fit_speculation(build: dict[str, Any], log: Log) -> None:
    if "max_seq_len" not in build or build["speculative_decoding_mode"] == 1:
        return
    draft = build["max_draft_len"]
    log.info(
        f"Increasing max_seq_len ({build['max_seq_len']}) by max_draft_len ({draft}) to account for speculative "
        "decoding implementation specifics. Maximum number of generated tokens remains the same. "
        f"New max_seq_len is set to {build['max_seq_len'] + draft}"
    )
    build["max_seq_len"] += draft
    build["max_num_tokens"] = max(build["max_num_tokens"], build["max_batch_size"] * (draft + 1))


def _fit_attention(plugins: dict[str, Any], quantization: dict[str, Any], context: Context, log: Log) -> None:
    cache = quantization["kv_cache_quant_algo"]
    if not context.since("0.17"):
        if plugins["use_paged_context_fmha"] and cache == "INT8" and context.since("0.12"):
            raise RuntimeError("Paged Context FMHA doesn't work with int8 kv cache currently.")
        return
    if plugins["use_fp8_context_fmha"] and quantization["quant_algo"] not in _FP8:
        plugins["use_fp8_context_fmha"] = False
        log.warning("FP8 Context FMHA is disabled because it must be used together with the fp8 quantization workflow.")
    elif plugins["use_fp8_context_fmha"] and plugins["use_paged_context_fmha"] and cache != "FP8":
        plugins["use_fp8_context_fmha"] = False
        log.warning("FP8 Paged Context FMHA is disabled because it must be used together with fp8 KV Cache.")
    if plugins["use_paged_context_fmha"] and cache == "INT8":
        plugins["use_paged_context_fmha"] = False
        log.warning("Paged Context FMHA is disabled because it doesn't work with int8 kv cache currently.")
