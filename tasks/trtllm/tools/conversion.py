"""What a recipe asks of the tool that makes the checkpoint: its convert_checkpoint.py, or quantize.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from packaging.version import Version

from tasks.trtllm.architectures import LLAMA, Architecture, engine_architecture
from tasks.trtllm.prequantized import convert_options
from tasks.trtllm.recipe import AWQ, CALIBRATED, TrtEngineFields
from tasks.trtllm.releases import LAST, in_span
from tasks.trtllm.tools.options import (
    CONVERTERS,
    HEADS,
    OptionUnfit,
    Tool,
    Value,
    arguments,
    known_options,
    nearest,
    span,
)
from tasks.weights.facts import WeightsFacts

# Options that some converters spell in another way. The first of a line that the version has is used.
_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "--model_dir": ("--model_dir", "--model-dir"),
    "--output_dir": ("--output_dir", "--output-model-dir"),
    "--tp_size": ("--tp_size", "--world-size", "--world_size"),
}
_WEIGHTS_ALONE = "--use-weight-only-with-precision"
"""Gemma's one option, up to 1.1, for the two that the other converters have."""

# Wishes that every converter grants without an option for them.
_GRANTED: Mapping[str, Value] = {"--tp_size": 1, "--pp_size": 1, "--cp_size": 1}
# Their scripts have --pp_size, and stop unless it is 1.
_ONE_STAGE = frozenset({"bloom", "chatglm", "gptneox", "mamba", "opt", "phi"})
_PASSED = frozenset(
    {
        *("--dtype", "--pp_size", "--cp_size", "--moe_tp_size", "--moe_ep_size", "--workers", _WEIGHTS_ALONE),
        *("--use_weight_only", "--weight_only_precision", "--use_fp8_rowwise", "--int8_kv_cache", "--fp8_kv_cache"),
        *("--calib_dataset", "--calib_size", "--calib_max_seq_length"),
        *(spelling for spellings in _SPELLINGS.values() for spelling in spellings),
    }
)
"""The options of converters that follow from a recipe's own fields."""


def converter_arguments(
    recipe: TrtEngineFields, name: str, model: str, checkpoint: str, facts: WeightsFacts | None = None
) -> tuple[str, ...]:
    """The arguments of the convert_checkpoint.py for architecture `name`; empty for one that nobody has named yet.

    Without `facts` the weights are not quantized already. Raises ArchitectureUnfit, OptionUnfit, and UsageError
    `weights-quantized`.
    """
    version, further = recipe.runtime.version, recipe.extra_args.convert
    known = engine_architecture(name or LLAMA, version)
    converter = known.converter
    if recipe.pp_size > 1 and converter in _ONE_STAGE:
        raise OptionUnfit(f"the converter of {name} has one pipeline stage alone: divide by tp_size, not by pp_size")
    wishes: dict[str, Value] = {"--model_dir": model, "--output_dir": checkpoint, **_convert(recipe, converter)}
    wishes |= {option: value for option, value in known.gives.items() if span(converter, option, version)}
    if name:
        wishes |= _variant(recipe, name, known)
    wishes |= convert_options(converter, facts, version, model)
    spelled = {
        _spelled(converter, option, version): value
        for option, value in wishes.items()
        if value != _GRANTED.get(option) or _has(converter, option, version)
    }
    _check_further(further, known if name else None, version)
    return arguments(converter, version, spelled) + further


def heads_converter(recipe: TrtEngineFields) -> Tool | None:
    """Networks with the heads of Medusa or Eagle have converters of their own. None for any other."""
    mode = None if recipe.speculation is None else recipe.speculation.mode
    return mode if mode in HEADS else None


def heads_arguments(
    recipe: TrtEngineFields, converter: Tool, known: Architecture, model: str, checkpoint: str, draft: str
) -> tuple[str, ...]:
    """The arguments of the convert_checkpoint.py of heads, which lie in `draft`. Raises OptionUnfit."""
    if known.converter != "llama":
        raise OptionUnfit(f"the heads of {converter} are those of a Llama, which {known.converter} does not convert")
    wishes = {"--model_dir": model, "--output_dir": checkpoint, **_convert(recipe, converter), **_heads(recipe, draft)}
    return arguments(converter, recipe.runtime.version, wishes) + recipe.extra_args.convert


def quantizer_arguments(recipe: TrtEngineFields, model: str, checkpoint: str, draft: str) -> tuple[str, ...]:
    """The arguments of quantize.py. Heads of Medusa lie in `draft`. Raises OptionUnfit."""
    wishes = {"--model_dir": model, "--output_dir": checkpoint, **_quantize(recipe), **_heads(recipe, draft)}
    return arguments("quantize", recipe.runtime.version, wishes) + recipe.extra_args.quantize


def _variant(recipe: TrtEngineFields, name: str, known: Architecture) -> dict[str, Value]:
    """The option that says which model of a class it is. 0.12 spells glm4 as glm-4."""
    if not known.variant:
        if recipe.variant is not None:
            raise OptionUnfit(f"variant: the converter of {name} asks for none")
        return {}
    version = recipe.runtime.version
    option = span(known.converter, known.variant, version)
    choices = [choice for choice in (option.choices if option is not None else ()) if choice != "None"]
    chosen = next((choice for choice in choices if choice.replace("-", "") == recipe.variant), None)
    if chosen is None:
        problem = "must be told which" if recipe.variant is None else f"takes no variant {recipe.variant}"
        raise OptionUnfit(
            f"several models are of {name}, and its converter in TensorRT-LLM {version} {problem}: "
            f"variant is one of {', '.join(choice.replace('-', '') for choice in choices)}"
        )
    return {known.variant: chosen}


def _check_further(words: Sequence[str], known: Architecture | None, version: Version) -> None:
    """Raise OptionUnfit for an option of `extra_args.convert` that follows from the recipe, or that nobody has.

    `known` None stands for an architecture that is not known yet: any converter may have the option.
    """
    if not words:
        return
    converters = CONVERTERS if known is None else (known.converter,)
    options = {name: each for converter in converters for name, each in known_options(converter, version).items()}
    decided = _PASSED | ({*known.gives, known.variant} if known is not None else set[str]())
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if not (option := _option(word)):
            continue
        if option in decided:
            raise OptionUnfit(f"extra_args.convert: {option} follows from the recipe: use its field for that")
        whose = "any converter" if known is None else f"examples/{known.converter}/convert_checkpoint.py"
        if option not in options:
            raise OptionUnfit(
                f"extra_args.convert: {option} is not an option of {whose} of TensorRT-LLM {version}"
                f"{nearest(option, options)}"
            )
        value = word.partition("=")[2] or following
        choices = options[option].choices
        if known is not None and choices and value not in choices:
            raise OptionUnfit(f"extra_args.convert: {option} of {whose} takes {', '.join(choices)}, not '{value}'")


def _option(word: str) -> str:
    """`--group_size` of `--group_size=64`. Empty for a value, as a negative number is."""
    return word.partition("=")[0] if re.match(r"--?[A-Za-z]", word) else ""


def _has(converter: str, option: str, version: Version) -> bool:
    return any(span(converter, spelling, version) for spelling in _SPELLINGS.get(option, (option,)))


def _spelled(converter: str, option: str, version: Version) -> str:
    return next((each for each in _SPELLINGS.get(option, ()) if span(converter, each, version)), option)


def _convert(recipe: TrtEngineFields, converter: str) -> dict[str, Value]:
    version = recipe.runtime.version
    wishes: dict[str, Value] = {"--dtype": recipe.dtype, **_parallel(recipe, converter)}
    if recipe.moe_tp_size is not None and recipe.moe_ep_size is not None:
        wishes |= {"--moe_tp_size": recipe.moe_tp_size, "--moe_ep_size": recipe.moe_ep_size}
    if span(converter, "--workers", version):
        wishes["--workers"] = recipe.world_size
    match recipe.quantization:
        case "int8_wo" | "int4_wo":
            bits = recipe.quantization.removesuffix("_wo")
            if span(converter, "--use_weight_only", version) or not span(converter, _WEIGHTS_ALONE, version):
                wishes |= {"--use_weight_only": True, "--weight_only_precision": bits}
            else:
                wishes[_WEIGHTS_ALONE] = bits
        case "fp8_rowwise":
            wishes["--use_fp8_rowwise"] = True
        case _:
            pass
    match recipe.kv_cache_dtype:
        case "fp8":
            wishes["--fp8_kv_cache"] = True
        case "int8":
            wishes |= {"--int8_kv_cache": True, **_calibration(recipe, converter)}
        case "nvfp4":
            raise OptionUnfit("an nvfp4 KV cache needs weights that quantize.py quantizes: nvfp4 or fp8")
        case "auto":
            pass
    return wishes


def _heads(recipe: TrtEngineFields, draft: str) -> dict[str, Value]:
    """What a converter, or quantize.py, is told of heads."""
    given, calibrated = recipe.speculation, recipe.quantization in CALIBRATED
    match heads_converter(recipe):
        case "medusa" if given is not None:
            most = "--max_draft_len" if calibrated else "--max_medusa_token_len"
            return {"--medusa_model_dir": draft, "--num_medusa_heads": given.num_heads, most: given.max_draft_len}
        case "eagle" if given is not None:
            if calibrated:
                raise OptionUnfit(f"quantize.py knows no heads of Eagle: {recipe.quantization} does not go with them")
            return {
                "--eagle_model_dir": draft,
                "--num_eagle_layers": given.num_heads,
                "--max_draft_len": given.max_draft_len,
            }
        case _:
            return {}


def _quantize(recipe: TrtEngineFields) -> dict[str, Value]:
    if recipe.moe_tp_size is not None:
        raise OptionUnfit("quantize.py divides experts by itself: leave moe_tp_size and moe_ep_size out")
    wishes: dict[str, Value] = {"--dtype": recipe.dtype, "--qformat": recipe.quantization}
    if recipe.kv_cache_dtype != "auto":
        wishes["--kv_cache_dtype"] = recipe.kv_cache_dtype
    if recipe.quantization in AWQ:
        wishes["--awq_block_size"] = recipe.awq_block_size
    return wishes | _calibration(recipe, "quantize") | _parallel(recipe, "quantize")


def _parallel(recipe: TrtEngineFields, tool: Tool) -> dict[str, Value]:
    sizes: dict[str, Value] = {"--tp_size": recipe.tp_size, "--pp_size": recipe.pp_size}
    if recipe.cp_size > 1 or span(tool, "--cp_size", recipe.runtime.version):
        sizes["--cp_size"] = recipe.cp_size
    return sizes


def _calibration(recipe: TrtEngineFields, tool: Tool) -> dict[str, Value]:
    """The calibration. What equals the tool's own default is left out if the version has no option for it."""
    chosen, usual = recipe.calibration, type(recipe.calibration)()
    wishes: dict[str, tuple[Value, Value]] = {
        "--calib_dataset": (chosen.dataset, usual.dataset),
        "--calib_size": (chosen.size, usual.size),
        "--calib_max_seq_length": (chosen.max_seq_length, usual.max_seq_length),
    }
    if tool == "quantize":
        wishes["--batch_size"] = (chosen.batch_size, usual.batch_size)
    version, first = recipe.runtime.version, "0.11"
    if chosen.local_folders and tool == "quantize" and not in_span(version, first):
        raise OptionUnfit(f"quantize.py of TensorRT-LLM {version} takes no local calibration set: {first} to {LAST} do")
    return {
        option: value for option, (value, default) in wishes.items() if value != default or span(tool, option, version)
    }
