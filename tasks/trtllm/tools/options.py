"""The options of TensorRT-LLM's command line tools, version by version: the table that planning goes by.

It holds the options of quantize.py and trtllm-build that Enginehouse passes or that a recipe may name, and all options
of each convert_checkpoint.py (`converters.json`, by the converter's folder). Source: the argument parsers of the
releases up to 0.16 and, after that, the sources that `releases` names. A worker also reads the tool's own `--help`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path

from packaging.version import Version
from pydantic import ConfigDict, TypeAdapter

from tasks.trtllm.releases import FIRST, LAST, MINORS, minor, minor_named

Tool = str
"""`quantize`, `build`, or the folder of a convert_checkpoint.py: `llama`, or `medusa` for a network with its heads."""
Value = str | int | bool | tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """How an option reads from release `since` on, until its next span.

    `default` is what the tool does without the option, in the option's own spelling; None if the tool works it out. A
    `switch` takes no value. `choices` are all its values, empty for any. A `gone` span ends the option.
    """

    since: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    switch: bool = False
    gone: bool = False
    aliases: tuple[str, ...] = ()


class OptionUnfit(ValueError):
    """An option, or a value of it, that the version does not have. The message names the versions that have it."""


def at(since: str, default: Value | None = None, choices: str = "") -> Span:
    """A span of an option with a value. Spaces separate the `choices`."""
    return Span(since, None if default is None else str(default), tuple(choices.split()))


def switch(since: str) -> Span:
    return Span(since, switch=True)


def gone(since: str) -> Span:
    return Span(since, gone=True)


_ON = "enable disable"
_TYPES = "float16 float32 bfloat16 disable"
_MORE_TYPES = "auto float16 float32 bfloat16 int32 disable"
_FP8 = "fp8 disable"
_SPECULATIVE = "draft_tokens_external medusa"
_QFORMATS = "fp8 int8_sq int4_awq w4a8_awq int8_wo int4_wo full_prec"

_TOOLS: Mapping[Tool, Mapping[str, tuple[Span, ...]]] = {
    "quantize": {
        "--model_dir": (at("0.8"),),
        "--output_dir": (at("0.8", "exported_model"),),
        "--dtype": (
            # Free text until 0.14. These are the types that the exporter knows.
            at("0.8", "float16", "float16 bfloat16"),
            at("0.15", "auto", "auto float16 bfloat16 float32"),
        ),
        "--qformat": (
            at("0.8", "full_prec", _QFORMATS),
            at("0.17", "full_prec", f"nvfp4 {_QFORMATS}"),
            at("0.21", "full_prec", f"nvfp4 fp8_pc_pt {_QFORMATS}"),
        ),
        "--kv_cache_dtype": (at("0.8", None, "int8 fp8"),),
        "--awq_block_size": (at("0.8", 128),),
        "--batch_size": (at("0.8", 1),),
        "--calib_dataset": (at("0.10", "cnn_dailymail"),),
        "--calib_size": (at("0.8", 512),),
        "--calib_max_seq_length": (at("0.10", 512),),
        "--tp_size": (at("0.8", 1),),
        "--pp_size": (at("0.8", 1),),
        "--cp_size": (at("0.16", 1),),
        "--medusa_model_dir": (at("0.11"),),
        "--num_medusa_heads": (at("0.11", 4),),
        "--max_draft_len": (at("0.11", 63),),
    },
    "build": {
        "--checkpoint_dir": (at("0.8"),),
        "--output_dir": (at("0.8", "engine_outputs"),),
        "--workers": (at("0.8", 1),),
        "--max_batch_size": (at("0.8", 1), at("0.11", 256), at("0.14", 2048)),
        "--max_input_len": (at("0.8", 1024),),
        # 0.11 still takes it, warns, and goes by --max_seq_len.
        "--max_output_len": (at("0.8", 1024), gone("0.11")),
        "--max_seq_len": (at("0.11"),),
        "--max_num_tokens": (at("0.8"), at("0.11", 8192)),
        "--opt_num_tokens": (at("0.9"),),
        "--max_beam_width": (at("0.8", 1),),
        "--max_prompt_embedding_table_size": (at("0.8", 0),),
        "--strongly_typed": (switch("0.8"), gone("0.11")),
        "--use_fused_mlp": (switch("0.8"), at("0.13", "enable", _ON)),
        "--kv_cache_type": (at("0.13", None, "continuous paged disabled"),),
        "--paged_kv_cache": (at("0.8", "enable", _ON), gone("0.13")),
        "--tokens_per_block": (at("0.8", 128), at("0.10", 64), at("0.17", 32)),
        "--input_timing_cache": (at("0.9"),),
        "--output_timing_cache": (at("0.9", "model.cache"),),
        "--fast_build": (switch("0.12"),),
        "--weight_streaming": (switch("0.10"),),
        "--weight_sparsity": (switch("0.9"),),
        "--gather_context_logits": (switch("0.8"),),
        "--gather_generation_logits": (switch("0.8"),),
        "--logits_dtype": (at("0.8", None, "float16 float32"),),
        "--speculative_decoding_mode": (
            at("0.10", None, _SPECULATIVE),
            at("0.11", None, f"{_SPECULATIVE} lookahead_decoding"),
            at("0.12", None, f"{_SPECULATIVE} lookahead_decoding explicit_draft_tokens"),
            at("0.15", None, f"{_SPECULATIVE} lookahead_decoding explicit_draft_tokens eagle"),
        ),
        "--max_draft_len": (at("0.9", 0),),
        "--lora_dir": (at("0.9"),),
        "--lora_ckpt_source": (at("0.9", "hf", "hf nemo"),),
        "--lora_target_modules": (at("0.9"),),
        "--max_lora_rank": (at("0.9", 64),),
        "--bert_attention_plugin": (at("0.8", "float16", _TYPES), at("0.11", "auto", _MORE_TYPES)),
        "--gpt_attention_plugin": (at("0.8", "float16", _TYPES), at("0.11", "auto", _MORE_TYPES)),
        "--gemm_plugin": (
            at("0.8", "disable", _TYPES),
            at("0.11", "disable", f"fp8 {_MORE_TYPES}"),
            at("0.17", "disable", f"nvfp4 fp8 {_MORE_TYPES}"),
        ),
        "--gemm_swiglu_plugin": (at("0.11", "disable", _FP8),),
        "--fp8_rowwise_gemm_plugin": (at("0.12", "disable", _MORE_TYPES),),
        "--low_latency_gemm_plugin": (at("0.13", "disable", _FP8),),
        "--low_latency_gemm_swiglu_plugin": (at("0.15", "disable", _FP8),),
        "--gemm_allreduce_plugin": (at("0.17", "disable", "float16 bfloat16 disable"),),
        "--lookup_plugin": (at("0.8", "disable", _TYPES), at("0.11", "disable", _MORE_TYPES), gone("0.15")),
        "--lora_plugin": (at("0.8", "disable", _TYPES), at("0.11", "disable", _MORE_TYPES)),
        "--dora_plugin": (at("0.17", "disable", _ON),),
        "--moe_plugin": (at("0.9", "float16", _TYPES), at("0.11", "auto", _MORE_TYPES)),
        "--mamba_conv1d_plugin": (at("0.9", "float16", _TYPES), at("0.11", "auto", _MORE_TYPES)),
        "--nccl_plugin": (at("0.10", "float16", _TYPES), at("0.11", "auto", _MORE_TYPES)),
        "--context_fmha": (at("0.8", "enable", _ON),),
        "--context_fmha_fp32_acc": (at("0.8", "disable", _ON), gone("0.12")),
        "--bert_context_fmha_fp32_acc": (at("0.12", "disable", _ON),),
        "--remove_input_padding": (at("0.8", "enable", _ON),),
        "--use_custom_all_reduce": (at("0.8", "enable", _ON), gone("0.12")),
        "--multi_block_mode": (at("0.8", "disable", _ON), gone("0.12")),
        "--enable_xqa": (at("0.8", "enable", _ON), gone("0.16")),
        "--attention_qk_half_accumulation": (at("0.8", "disable", _ON), gone("0.11")),
        "--use_context_fmha_for_generation": (at("0.8", "disable", _ON), gone("0.11")),
        "--use_paged_context_fmha": (at("0.8", "disable", _ON), at("0.17", "enable", _ON)),
        "--use_fp8_context_fmha": (at("0.9", "disable", _ON), at("0.17", "enable", _ON)),
        "--multiple_profiles": (at("0.9", "disable", _ON),),
        "--paged_state": (at("0.9", "enable", _ON),),
        # 1.2 parses it and then stops: it is no longer supported.
        "--streamingllm": (at("0.9", "disable", _ON), gone("1.2")),
        "--reduce_fusion": (at("0.11", "disable", _ON),),
        "--user_buffer": (at("0.16", "disable", _ON),),
        "--pp_reduce_scatter": (at("0.15", "disable", _ON),),
        "--norm_quant_fusion": (at("0.19", "disable", _ON),),
        "--fuse_fp4_quant": (at("0.17", "disable", _ON),),
    },
}


CONVERTERS: Mapping[Tool, Mapping[str, tuple[Span, ...]]] = TypeAdapter(
    dict[str, dict[str, tuple[Span, ...]]], config=ConfigDict(coerce_numbers_to_str=True)
).validate_json(Path(__file__).with_name("converters.json").read_bytes())
"""The options of each convert_checkpoint.py. The file holds more than planning needs, which the tests' stand-in reads.

Llama's --fp8_kv_cache begins at 0.12: 0.8 takes it without any effect.
"""

# Of the converters of networks with heads that guess. Those after 0.16 are taken to be as those of 0.16.
_WITH_HEADS: Mapping[str, tuple[Span, ...]] = {
    "--model_dir": (at("0.8"),),
    "--output_dir": (at("0.8", "tllm_checkpoint"),),
    "--dtype": (at("0.8", "float16", "float32 bfloat16 float16"),),
    "--tp_size": (at("0.8", 1),),
    "--pp_size": (at("0.8", 1),),
    "--workers": (at("0.8", 1),),
    "--use_weight_only": (switch("0.8"),),
    "--weight_only_precision": (at("0.8", "int8", "int8 int4 int4_gptq"),),
    "--int8_kv_cache": (switch("0.8"),),
    "--calib_dataset": (at("0.10", "ccdv/cnn_dailymail"),),
}

HEADS: Mapping[Tool, Mapping[str, tuple[Span, ...]]] = {
    "medusa": {
        **_WITH_HEADS,
        "--medusa_model_dir": (at("0.8"),),
        "--num_medusa_heads": (at("0.8", 4),),
        "--max_medusa_token_len": (at("0.8", 63),),
    },
    "eagle": {
        **{option: tuple(replace(each, since="0.15") for each in spans) for option, spans in _WITH_HEADS.items()},
        "--dtype": (
            at("0.15", "float16", "float32 bfloat16 float16"),
            at("0.16", "auto", "auto float16 bfloat16 float32"),
        ),
        "--calib_dataset": (at("0.15", "ccdv/cnn_dailymail"),),
        "--eagle_model_dir": (at("0.15"),),
        "--num_eagle_layers": (at("0.15", 4),),
        "--max_draft_len": (at("0.15", 63),),
    },
}

OPTIONS = {**_TOOLS, **CONVERTERS, **HEADS}


def span(tool: Tool, option: str, version: Version) -> Span | None:
    """How `option` reads in `version`. Returns None if the version has no such option."""
    return _of_release(tool, minor(version)).get(option)


def known_options(tool: Tool, version: Version) -> Mapping[str, Span]:
    """Every option that `tool` has in `version`, by each of its spellings."""
    known = _of_release(tool, minor(version))
    return {name: each for option, each in known.items() for name in (option, *each.aliases)}


@cache
def _of_release(tool: Tool, release: tuple[int, int]) -> Mapping[str, Span]:
    """Every option that `tool` has in a minor release. Each model of a catalogue asks for some fifty of them."""
    begun = {
        option: [each for each in spans if minor_named(each.since) <= release]
        for option, spans in OPTIONS[tool].items()
    }
    return {option: spans[-1] for option, spans in begun.items() if spans and not spans[-1].gone}


def nearest(option: str, options: Iterable[str]) -> str:
    """`: did you mean --group_size?`, or nothing if none of `options` is like `option`."""
    near = difflib.get_close_matches(option, sorted(options), n=1, cutoff=0.7)
    return f": did you mean {near[0]}?" if near else ""


def has_max_seq_len(version: Version) -> bool:
    """Whether trtllm-build of `version` limits prompt and answer together. Before 0.11 each has a limit of its own."""
    return span("build", "--max_seq_len", version) is not None


def arguments(tool: Tool, version: Version, wishes: Mapping[str, Value]) -> tuple[str, ...]:
    """The arguments that give `tool` of `version` the values in `wishes`, by option.

    A switch that is False is left out, and so is a value that every version uses by default. Raises OptionUnfit.
    """
    written: list[str] = []
    for option, value in wishes.items():
        known = span(tool, option, version)
        if known is None:
            raise OptionUnfit(f"{option} is not an option of {_of(tool)} {version}: {_where(tool, option)}")
        if known.switch:
            if not isinstance(value, bool):
                raise OptionUnfit(f"{option} takes no value in TensorRT-LLM {version}, and '{value}' is one")
            written += [option] * value
            continue
        texts = [_text(value)] if not isinstance(value, tuple) else list(value)
        for text in texts:
            if known.choices and text not in known.choices:
                raise OptionUnfit(
                    f"{option} of {_of(tool)} {version} takes {', '.join(known.choices)}, not '{text}'"
                    f"{_which_take(tool, option, text)}"
                )
        if texts != [_lasting_default(tool, option)]:
            written += [option, *texts]
    return tuple(written)


def _of(tool: Tool) -> str:
    whose = "" if tool in ("llama", *_TOOLS) else f"the converter of {tool} in "
    return f"{whose}TensorRT-LLM"


def _text(value: str | int | bool) -> str:
    return ("disable", "enable")[value] if isinstance(value, bool) else str(value)


@cache
def _lasting_default(tool: Tool, option: str) -> str | None:
    """The default that the option has had in every version that has it."""
    defaults = {each.default for each in OPTIONS[tool][option] if not each.gone}
    styles = {each.switch for each in OPTIONS[tool][option] if not each.gone}
    return defaults.pop() if len(defaults) == len(styles) == 1 else None


def _where(tool: Tool, option: str) -> str:
    ranges = [_range(each, following) for each, following in _with_next(OPTIONS[tool].get(option, ())) if not each.gone]
    return f"it is one of {' and '.join(_joined(ranges))}" if ranges else "no known version has it"


def _which_take(tool: Tool, option: str, text: str) -> str:
    ranges = [
        _range(each, following)
        for each, following in _with_next(OPTIONS[tool][option])
        if not each.gone and text in each.choices
    ]
    return f"; {' and '.join(_joined(ranges))} takes that" if ranges else ""


def _with_next(spans: tuple[Span, ...]) -> list[tuple[Span, Span | None]]:
    return list(zip_longest(spans, spans[1:]))


def _range(first: Span, following: Span | None) -> tuple[str, str]:
    return first.since, LAST if following is None else _before(following.since)


def _joined(ranges: list[tuple[str, str]]) -> list[str]:
    joined: list[tuple[str, str]] = []
    for since, until in ranges:
        if joined and joined[-1][1] == _before(since):
            joined[-1] = (joined[-1][0], until)
        else:
            joined.append((since, until))
    return [since if since == until else f"{since} to {until}" for since, until in joined]


def _before(release: str) -> str:
    return MINORS[max(0, MINORS.index(release) - 1)] if release != FIRST else FIRST
