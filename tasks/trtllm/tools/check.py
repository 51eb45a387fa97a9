"""Whether what a tool left is whole and is what the recipe asked for, once the tool has ended well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from infra.errors import StepFailed
from tasks.trtllm.prequantized import ALGORITHMS
from tasks.trtllm.recipe import TrtEngineFields
from tasks.trtllm.tools.options import has_max_seq_len
from tasks.weights.quantized import Quantized

CONFIG = "config.json"
TOKENIZER = "tokenizer"
"""The folder of the tokenizer's files in a checkpoint and in an engine."""

_TOKENIZERS = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "vocab.json", "vocab.txt")
"""One of these a model needs: of the library tokenizers, SentencePiece and tiktoken (`*.model`: tokenizer, spiece,
tiktoken), Qwen's tiktoken, Mistral's tekken, and the vocabularies of BPE and WordPiece."""

# What is beside them: how a tokenizer is made of its file, chat templates, and what ends an answer.
_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "config.json",
)
_QUANTIZED = {
    "fp8": {"FP8"},
    "fp8_rowwise": {"FP8_PER_CHANNEL_PER_TOKEN"},
    "int8_wo": {"W8A16"},
    "int4_wo": {"W4A16"},
    "int4_awq": {"W4A16_AWQ"},
    "w4a8_awq": {"W4A8_AWQ"},
    "nvfp4": {"NVFP4"},
}


def check_checkpoint(recipe: TrtEngineFields, folder: Path, quantized: Quantized | None = None) -> None:
    """Raise StepFailed `checkpoint-unfit` unless every rank has a file and the quantization is the recipe's.

    `quantized` is how the weights were before, which the checkpoint then has kept.
    """
    config = _config(folder, "checkpoint-unfit")
    # Context parallelism shares weights, so it adds no files.
    _require_files(folder, (f"rank{rank}.safetensors" for rank in range(recipe.tp_size * recipe.pp_size)), "checkpoint")
    _require_agreement(recipe, config, folder, "checkpoint-unfit")
    found = quantization_of(folder)
    if quantized is not None and found not in ALGORITHMS.get(quantized.method, ()):
        raise StepFailed(
            f"the weights are quantized by {quantized}, and {folder.name}/{CONFIG} holds {found}",
            hint="the log of the convert script shows what it did instead",
            code="checkpoint-unfit",
        )


def quantization_of(folder: Path) -> str | None:
    """`quantization.quant_algo` of a checkpoint. Raises StepFailed `checkpoint-unfit` without `config.json`."""
    found = _object(_config(folder, "checkpoint-unfit"), "quantization").get("quant_algo")
    return found if isinstance(found, str) else None


def check_engine(recipe: TrtEngineFields, folder: Path) -> None:
    """Raise StepFailed `engine-unfit` unless every rank has a file and `config.json` agrees with the recipe."""
    config = _config(folder, "engine-unfit")
    ranks = range(recipe.world_size)
    _require_files(folder, (f"rank{rank}.engine" for rank in ranks), "engine")
    if recipe.fast_build:
        _require_files(folder, (f"rank{rank}_managed_weights.safetensors" for rank in ranks), "engine")
    _require_agreement(recipe, _object(config, "pretrained_config"), folder, "engine-unfit")
    built = _object(config, "build_config")
    wanted: dict[str, JsonValue] = {
        "max_batch_size": recipe.max_batch_size,
        "max_input_len": recipe.max_input_len,
        "max_beam_width": recipe.max_beam_width,
    }
    if recipe.speculation is None:  # else trtllm-build adds room for the draft by itself
        if has_max_seq_len(recipe.runtime.version):
            wanted["max_seq_len"] = recipe.max_seq_len
        else:
            wanted["max_output_len"] = recipe.max_seq_len - recipe.max_input_len
    _require_equal({name: built.get(name) for name in wanted}, wanted, folder, "engine-unfit")


def require_weights(folder: Path) -> None:
    """Raise StepFailed `checkpoint-unfit` unless `folder` holds a Hugging Face model with its weights."""
    _config(folder, "checkpoint-unfit")
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    _require_files(folder, sorted(names), "checkpoint")


def require_config(folder: Path) -> None:
    """Raise StepFailed `checkpoint-unfit` unless `folder` holds a model's `config.json`."""
    _config(folder, "checkpoint-unfit")


def require_same_tokens(folder: Path, draft: Path) -> None:
    """Raise StepFailed `draft-unfit` unless both tokenizers have the same tokens. One without tokenizer.json passes.

    Guesses are numbers of tokens: those of another vocabulary are nonsense, or none of the model's at all.
    """
    known, guessed = (_vocabulary(each) for each in (folder, draft))
    if known is not None and guessed is not None and known != guessed:
        raise StepFailed(
            "the draft model has other tokens than the model that checks its guesses",
            hint="take a smaller model of the same family: recipe.speculation.source",
            code="draft-unfit",
        )


def _vocabulary(folder: Path) -> object:
    path = folder / "tokenizer.json"
    return json.loads(path.read_bytes())["model"]["vocab"] if path.is_file() else None


def require_tokenizer(folder: Path) -> None:
    """Raise StepFailed `tokenizer-missing` unless `folder` holds a tokenizer."""
    if not _matching(folder, _TOKENIZERS):
        raise StepFailed(
            "the model has no tokenizer, and nothing can be asked without one",
            hint=f"let `source.include` take its files too: one of {', '.join(_TOKENIZERS)}, and those beside it",
            code="tokenizer-missing",
        )


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files of a model to `folder`/tokenizer. Raises StepFailed `tokenizer-missing`."""
    require_tokenizer(source)
    (folder / TOKENIZER).mkdir()
    add_tokenizer(source, folder / TOKENIZER)


def add_tokenizer(source: Path, folder: Path) -> None:
    """Copy those of the tokenizer's files of a model to `folder` that it lacks."""
    for path in _matching(source, (*_TOKENIZERS, *_BESIDE)):
        target = folder / path.relative_to(source)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]


def _config(folder: Path, code: str) -> Mapping[str, JsonValue]:
    try:
        config: object = json.loads((folder / CONFIG).read_text())
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
        return cast("dict[str, JsonValue]", config)
    except (FileNotFoundError, ValueError) as error:
        raise StepFailed(f"{CONFIG} cannot be read: {error}", code=code) from error


def _object(config: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _require_files(folder: Path, names: Iterable[str], what: str) -> None:
    for name in names:
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            state = "is empty" if path.is_file() else "is missing"
            raise StepFailed(
                f"the {what} is not whole: {name} {state}",
                hint="see the log of its tool: a worker may have died without failing it",
                code=f"{what}-unfit",
            )


def _require_agreement(recipe: TrtEngineFields, config: Mapping[str, JsonValue], folder: Path, code: str) -> None:
    mapping = _object(config, "mapping")
    _require_equal(
        {"tp_size": mapping.get("tp_size"), "pp_size": mapping.get("pp_size")},
        {"tp_size": recipe.tp_size, "pp_size": recipe.pp_size},
        folder,
        code,
    )
    if (algorithms := _QUANTIZED.get(recipe.quantization)) is not None:
        found = _object(config, "quantization").get("quant_algo")
        if found not in algorithms:
            raise StepFailed(
                f"the recipe asks for {recipe.quantization}, and {folder.name}/{CONFIG} holds {found}",
                hint="the log of its tool shows what it did instead",
                code=code,
            )


def _require_equal(found: Mapping[str, JsonValue], wanted: Mapping[str, JsonValue], folder: Path, code: str) -> None:
    wrong = [f"{name} is {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value]
    if wrong:
        raise StepFailed(
            f"{CONFIG} does not agree with the recipe: {'; '.join(wrong)}",
            hint="the log of its tool shows where it changed a limit by itself",
            code=code,
        )
