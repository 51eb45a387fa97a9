"""From a recipe to the commands that make an engine, in the words of the recipe's version.

A command sets every option whose default differs between versions, so that one recipe means the same in all of them.
A version that cannot do what the recipe asks is an error while the recipe is parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from infra.toolchains.toolchain import BUILD, under_mpi
from tasks.trtllm.architectures import LLAMA, convert_script, engine_architecture, moved_script
from tasks.trtllm.recipe import CALIBRATED, LlmApiFields, TrtEngineFields
from tasks.trtllm.tools.conversion import (
    converter_arguments,
    heads_arguments,
    heads_converter,
    quantizer_arguments,
)
from tasks.trtllm.tools.options import OPTIONS, OptionUnfit, Value, arguments, has_max_seq_len, span
from tasks.weights.facts import WeightsFacts

# Weights in these formats multiply in FP8. Up to 0.10 their networks need --strongly_typed to keep to it.
_FP8 = frozenset({"fp8", "fp8_rowwise", "w4a8_awq"})
_MODELOPT = Path(__file__).with_name("modelopt_quantize.py")
TIMING_CACHE = "model.cache"
"""Where trtllm-build reads and leaves its timing cache, in its working directory. 0.8 has an option and no cache."""


@dataclass(frozen=True)
class ToolCommand:
    """One call of a tool: `trtllm-build`, our own script, or one by its path below the examples of 0.8 to 0.19."""

    tool: str
    arguments: tuple[str, ...]
    version: Version
    ranks: int = 1
    """MPI processes."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole command as a person would type it in a checkout of the version."""
        if self.tool == BUILD:
            return self.tool, *self.arguments
        if self.tool == str(_MODELOPT):
            return "python3", _MODELOPT.name, *self.arguments
        script = f"examples/{moved_script(self.tool, self.version)}"
        return under_mpi(("python3", script, *self.arguments), self.ranks)


def is_quantized_by_calibration(recipe: TrtEngineFields) -> bool:
    """Whether quantize.py makes the checkpoint. Otherwise convert_checkpoint.py does."""
    return recipe.quantization in CALIBRATED


def checkpoint_command(
    recipe: TrtEngineFields, model: str, checkpoint: str, facts: WeightsFacts | None = None, draft: str = "draft"
) -> ToolCommand:
    """The command that turns the Hugging Face model in `model` into a checkpoint in `checkpoint`.

    Without `facts` the weights are of the recipe's architecture, or of Llama's where it names none, and are not
    quantized already. The heads of Medusa or Eagle lie in `draft`. Raises ArchitectureUnfit, OptionUnfit, and
    UsageError `weights-quantized`.
    """
    version = recipe.runtime.version
    name = (facts.architecture if facts is not None else "") or recipe.architecture or ""
    known = engine_architecture(name or LLAMA, version)
    if is_quantized_by_calibration(recipe):
        return ToolCommand("quantization/quantize.py", quantizer_arguments(recipe, model, checkpoint, draft), version)
    if (heads := heads_converter(recipe)) is not None:
        written = heads_arguments(recipe, heads, known, model, checkpoint, draft)
        return ToolCommand(f"{heads}/convert_checkpoint.py", written, version)
    written = converter_arguments(recipe, name, model, checkpoint, facts)
    return ToolCommand(convert_script(known.converter, version), written, version)


def modelopt_command(recipe: LlmApiFields, model: str, checkpoint: str) -> ToolCommand:
    """The command that quantizes the Hugging Face model in `model` into one in `checkpoint`, for the LLM API."""
    chosen = recipe.calibration
    words: list[object] = ["--model_dir", model, "--output_dir", checkpoint, "--dtype", recipe.dtype]
    words += ["--qformat", recipe.quantization, "--awq_block_size", recipe.awq_block_size]
    words += ["--kv_cache_dtype", recipe.kv_cache_dtype] if recipe.kv_cache_dtype != "auto" else []
    words += ["--calib_dataset", chosen.dataset, "--calib_size", chosen.size]
    words += ["--calib_max_seq_length", chosen.max_seq_length, "--batch_size", chosen.batch_size]
    return ToolCommand(str(_MODELOPT), tuple(map(str, words)), recipe.runtime.version)


def build_command(
    recipe: TrtEngineFields, checkpoint: str, engine: str, *, quantized_already: bool = False
) -> ToolCommand:
    """The command that turns the checkpoint in `checkpoint` into an engine in `engine`."""
    wishes = {"--checkpoint_dir": checkpoint, "--output_dir": engine, **_build(recipe)}
    if quantized_already:
        wishes["--use_fused_mlp"] = False  # fused layers exist for unquantized and FP8 weights alone
    version = recipe.runtime.version
    return ToolCommand(BUILD, arguments("build", version, wishes) + recipe.extra_args.build, version)


def check_command(recipe: TrtEngineFields, engine: str, tokenizer: str, prompt: str, max_tokens: int) -> ToolCommand:
    """The command that asks the engine in `engine` one prompt, on the machine that built it."""
    return ToolCommand(
        "run.py",
        (
            f"--engine_dir={engine}",
            "--max_output_len",
            str(max_tokens),
            "--tokenizer_dir",
            tokenizer,
            "--input_text",
            prompt,
            *_asked_speculation(recipe),
        ),
        recipe.runtime.version,
        ranks=recipe.world_size,
    )


def check_options(recipe: TrtEngineFields) -> None:
    """Raise OptionUnfit, a ValueError, for an option or a value that the recipe's version does not take."""
    checkpoint_command(recipe, "model", "checkpoint")
    build_command(recipe, "checkpoint", "engine")
    further = recipe.extra_args
    checked = [("quantize", "quantize", further.quantize), ("build", "build", further.build)]
    if (heads := heads_converter(recipe)) is not None:  # of other converters the command itself has asked
        checked.append(("convert", heads, further.convert))
    for field, tool, words in checked:
        for word in words:
            option = word.partition("=")[0]
            if option in OPTIONS[tool]:
                raise OptionUnfit(f"extra_args.{field}: {option} follows from the recipe: use its field for that")


def _asked_speculation(recipe: TrtEngineFields) -> tuple[str, ...]:
    given = recipe.speculation
    if given is None:
        return ()
    if given.mode == "lookahead_decoding":
        return "--lookahead_config", str([given.window_size, given.ngram_size, given.verification_set_size])
    if given.choices:
        return f"--{given.mode}_choices", str([list(path) for path in given.choices])
    return ()


def _build(recipe: TrtEngineFields) -> dict[str, Value]:
    version = recipe.runtime.version
    wishes: dict[str, Value] = {}
    for part in (_plugins, _limits, _attention, _layers, _extras):
        wishes |= part(recipe, version)
    wishes["--workers"] = recipe.world_size
    for name, value in recipe.plugins.items():
        if (option := f"--{name}") in wishes:
            wishes[option] = value
        elif option in OPTIONS["build"]:
            wishes |= {option: value}
        else:
            raise OptionUnfit(f"plugins.{name}: no known version of trtllm-build has it; try extra_args.build")
    return wishes


def _plugins(recipe: TrtEngineFields, version: Version) -> Mapping[str, Value]:
    return {option: _plugin_type(recipe, option, version) for option in ("--gpt_attention_plugin", "--gemm_plugin")}


def _plugin_type(recipe: TrtEngineFields, option: str, version: Version) -> str:
    """`auto`, which is the dtype of the checkpoint; the dtype itself for a version without `auto`."""
    known = span("build", option, version)
    return "auto" if known is not None and "auto" in known.choices else recipe.dtype


def _limits(recipe: TrtEngineFields, version: Version) -> Mapping[str, Value]:
    limits: dict[str, Value] = {"--max_batch_size": recipe.max_batch_size, "--max_input_len": recipe.max_input_len}
    if has_max_seq_len(version):
        limits["--max_seq_len"] = recipe.max_seq_len
    else:
        limits["--max_output_len"] = recipe.max_seq_len - recipe.max_input_len
    return {**limits, "--max_num_tokens": recipe.max_num_tokens, "--max_beam_width": recipe.max_beam_width}


def _attention(recipe: TrtEngineFields, version: Version) -> Mapping[str, Value]:
    wishes: dict[str, Value] = {}
    if span("build", "--kv_cache_type", version):
        wishes["--kv_cache_type"] = recipe.kv_cache_type
    else:
        wishes["--paged_kv_cache"] = recipe.kv_cache_type == "paged"
    wishes["--tokens_per_block"] = recipe.tokens_per_block
    # It does not work with an int8 KV cache. Later versions then switch it off by themselves.
    wishes["--use_paged_context_fmha"] = recipe.paged_context_fmha and recipe.kv_cache_dtype != "int8"
    if span("build", "--use_fp8_context_fmha", version):
        # It needs FP8 arithmetic in attention, which begins at Hopper, and an FP8 KV cache.
        hopper = recipe.runtime.compute_capability >= 90
        wishes["--use_fp8_context_fmha"] = hopper and recipe.kv_cache_dtype == "fp8" and recipe.quantization in _FP8
    return wishes


def _layers(recipe: TrtEngineFields, version: Version) -> Mapping[str, Value]:
    # Fused layers exist for unquantized and FP8 weights; with others 0.8 to 0.12 stop.
    wishes: dict[str, Value] = {"--use_fused_mlp": recipe.fused_mlp and recipe.quantization in ("none", "fp8")}
    if span("build", "--strongly_typed", version):
        wishes["--strongly_typed"] = recipe.quantization in _FP8
    return wishes


def _extras(recipe: TrtEngineFields, version: Version) -> Mapping[str, Value]:
    wishes: dict[str, Value] = {}
    if recipe.fast_build:
        wishes["--fast_build"] = True
    if recipe.speculation is not None:
        wishes["--speculative_decoding_mode"] = recipe.speculation.mode
        wishes["--max_draft_len"] = recipe.speculation.max_draft_len
    if recipe.lora is not None:
        wishes["--lora_plugin"] = _plugin_type(recipe, "--lora_plugin", version)
        wishes["--lora_target_modules"] = recipe.lora.target_modules
        wishes["--max_lora_rank"] = recipe.lora.max_rank
    if span("build", "--input_timing_cache", version):
        wishes["--input_timing_cache"] = wishes["--output_timing_cache"] = TIMING_CACHE
    return wishes
