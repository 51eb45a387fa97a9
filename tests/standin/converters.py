"""Every convert_checkpoint.py: where it lies, what it parses, and what it refuses before it reads a weight.

The options are those that the scripts' own parsers have (`converters.json` beside the driver's table, which a test
compares with them). Source of the refusals: the scripts, and `from_hugging_face` of tensorrt_llm/models.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.standin.context import Context

_TABLE = Path(__file__).parents[2] / "tasks" / "trtllm" / "tools" / "converters.json"
_TYPES = {"int": int, "float": float}
_CORE = ("llama", "qwen", "gemma", "recurrentgemma", "phi", "gpt", "commandr", "internlm2", "nemotron_nas", "mamba")
_PATH = "/convert_checkpoint.py"


def script(converter: str, minor: tuple[int, ...]) -> str:
    """Where the converter's script lies below `examples`, in a version of this major and minor number."""
    if minor < (0, 20):
        return converter + _PATH
    folder = "glm-4-9b" if converter == "chatglm" else converter
    return f"models/{'core' if converter in (*_CORE, 'chatglm') else 'contrib'}/{folder}{_PATH}"


def of_version(minor: tuple[int, ...]) -> list[str]:
    """The converters that a version has, Llama's among them."""
    return [name for name in _table() if _rows(name, minor)]


def parser(converter: str, minor: tuple[int, ...]) -> argparse.ArgumentParser:
    """A parser that takes and refuses what the version's own does."""
    made = argparse.ArgumentParser(prog="convert_checkpoint.py")
    for option, row in _rows(converter, minor).items():
        options: dict[str, Any] = {name: row[name] for name in ("nargs", "const", "required", "default") if name in row}
        if row.get("switch"):
            options["action"] = "store_true"
        elif "type" in row:
            options["type"] = _TYPES[row["type"]]
        if "choices" in row:
            options["choices"] = [options["type"](each) if "type" in options else each for each in row["choices"]]
        made.add_argument(option, *row.get("aliases", ()), **options)
    return made


def require_imports(converter: str, context: Context) -> None:
    """Raise ModuleNotFoundError as the script does where the environment lacks what it imports."""
    wanted: tuple[str, ...] = ()
    if converter == "gemma" and not context.since("0.13"):
        wanted = ("flax", "h5py", "easydict")
    elif converter == "recurrentgemma":
        wanted = ("flax", "orbax", "recurrentgemma")
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named '{name}'")


def refuse(converter: str, given: dict[str, Any], config: dict[str, Any], context: Context) -> None:
    """Raise as the script does for a model or for sizes that it does not take. `given` are its parsed arguments."""
    model_type, architecture = config.get("model_type"), config["architectures"][0]
    if converter in ("bloom", "chatglm", "gptneox", "mamba", "opt", "phi"):
        assert given.get("pp_size", 1) == 1, "Pipeline parallelism is not supported."
    if converter == "nemotron_nas":
        assert given["trust_remote_code"], "Nemotron NAS checkpoint require --trust_remote_code"
    if converter == "qwen":
        valid = _qwen_types(context)
        assert model_type in valid, f"Unsupported Qwen type: {model_type}, only {valid} are acceptable."
    if converter == "gemma":
        if given["ckpt_type"] is None:
            raise KeyError(None)
        assert given["ckpt_type"] == "hf", "the stand-in reads no checkpoint of Gemma's own"
        if architecture == "Gemma2ForCausalLM" and context.since("0.13"):
            assert "query_pre_attn_scalar" in config, "Gemma2 models must configure `query_pre_attn_scalar`"
    if converter == "chatglm":
        # Without the option the script looks for the name in the path of the folder.
        assert given["chatglm_version"] not in (None, "None")
    if converter == "gpt":
        known = given["gpt_variant"] not in (None, "None") or (context.since("0.15") and model_type == "nemotron")
        assert known, "Inferring gpt variant from path..."
    if converter == "phi" and context.since("0.11"):
        taken = ("PhiForCausalLM", "Phi3ForCausalLM", "Phi3VForCausalLM", "Phi3SmallForCausalLM", "PhiMoEForCausalLM")
        assert architecture in taken, "Invalid model type"
    if converter == "llama":
        # Of the names that its reader wants, other families lack these.
        for name in ("hidden_act", "rms_norm_eps"):
            if name not in config and context.since("0.9"):
                raise AttributeError(f"'{str(model_type).title()}Config' object has no attribute '{name}'")


def _qwen_types(context: Context) -> tuple[str, ...]:
    valid: tuple[str, ...] = ("qwen",)
    for since, more in (("0.10", "qwen2"), ("0.11", "qwen2_moe"), ("0.15", "qwen2_llava_onevision")):
        valid += (more,) if context.since(since) else ()
    return (*valid, "qwen2_vl", "qwen3", "qwen3_moe") if context.since("1.0") else valid


def _rows(converter: str, minor: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for option, rows in _table()[converter].items():
        for row in rows:
            if tuple(map(int, row["since"].split("."))) <= minor:
                found[option] = row
    return {option: row for option, row in found.items() if not row.get("gone")}


@cache
def _table() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads(_TABLE.read_text())
