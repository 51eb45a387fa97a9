"""Kind `llmapi`: a checkpoint in Hugging Face form, quantized by ModelOpt where asked for, and the LLM's arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from tasks.artifact import Manifest
from tasks.engines import LIMITS_FILE, not_served
from tasks.engines.reporter import Peak, Reporter
from tasks.engines.serving_mode import ServingMode
from tasks.identity import Identity
from tasks.records import Machine
from tasks.spec import Model
from tasks.trtllm import commands
from tasks.trtllm.check import require_weights
from tasks.trtllm.fits import differences
from tasks.trtllm.launch import gpus_taken, serving_mode
from tasks.trtllm.recipe import LlmApiRecipe
from tasks.trtllm.tool import described, run_tool, toolchain_for

ARGUMENTS_FILE = "llm_args.json"
"""The keyword arguments of `tensorrt_llm.LLM`, without the model's path, which is the node's."""

_CONVERT_VERSION = 1
_BUILD_VERSION = 1


def _recipe(model: Model) -> LlmApiRecipe:
    assert isinstance(model.recipe, LlmApiRecipe)
    return model.recipe


class LlmApi:
    served = False

    def pool(self, model: Model) -> str:
        return f"build-{_recipe(model).runtime.arch}"

    def commands(self, model: Model) -> tuple[tuple[str, ...], ...]:
        recipe = _recipe(model)
        if recipe.quantization == "none":
            return ()
        return (commands.modelopt_command(recipe, "model", "checkpoint").argv,)

    def require_worker(self, model: Model) -> None:
        if _recipe(model).quantization != "none":  # else nothing of the toolchain is used
            toolchain_for(_recipe(model).runtime)

    def serving_mode(self, model: Model) -> ServingMode:
        return serving_mode(_recipe(model))

    def gpus(self, model: Model) -> tuple[int, ...]:
        return gpus_taken(_recipe(model), model.serving.tensorrt_llm)

    def fits(self, model: Model, engine: Manifest, machine: Machine) -> list[str]:
        recipe = _recipe(model)
        # Nothing was built: what counts is what the recipe's rules were checked for. Every product of it will do.
        needed = {"tensorrt_llm": recipe.runtime.tensorrt_llm, "architecture": recipe.runtime.arch}
        return differences(needed, machine, self.gpus(model), portable=True)

    def runtime(self, model: Model) -> Mapping[str, str]:
        if _recipe(model).quantization == "none":
            return {}
        return described(toolchain_for(_recipe(model).runtime)[1])

    def checkpoint_identity(self, model: Model, snapshot: Identity) -> Identity:
        recipe = _recipe(model)
        fields: dict[str, JsonValue] = {"kind": "llmapi", "quantization": recipe.quantization}
        if recipe.quantization != "none":
            fields |= {
                "dtype": recipe.dtype,
                "kv_cache_dtype": recipe.kv_cache_dtype,
                "calibration": recipe.calibration.model_dump(mode="json"),
                "awq_block_size": recipe.awq_block_size,
                "runtime": {"tensorrt_llm": recipe.runtime.tensorrt_llm},
            }
        return Identity.of("convert", _CONVERT_VERSION, inputs={"snapshot": snapshot}, fields=fields)

    def engine_identity(self, model: Model, checkpoint: Identity) -> Identity:
        recipe = _recipe(model)
        return Identity.of(
            "build",
            _BUILD_VERSION,
            inputs={"checkpoint": checkpoint},
            fields={
                "kind": "llmapi",
                "arguments": llm_arguments(recipe),
                "runtime": {"tensorrt_llm": recipe.runtime.tensorrt_llm},
            },
        )

    def repository_identity(self, model: Model, engine: Identity) -> Identity:
        raise not_served(model)

    def kept(self, model: Model) -> Mapping[str, str]:
        return {}

    def convert(self, model: Model, snapshot: Path, output: Path, scratch: Path, reporter: Reporter) -> Peak:
        recipe = _recipe(model)
        if recipe.quantization == "none":
            _link_all(snapshot, output)
            require_weights(output)
            return Peak()
        place, _ = toolchain_for(recipe.runtime)
        command = commands.modelopt_command(recipe, str(snapshot), str(output))
        local = [Path(recipe.calibration.dataset)] if recipe.calibration.dataset.startswith("/") else []
        peak, _ = run_tool(
            place, command, inputs=[snapshot, *local], outputs=[output], folder=scratch, reporter=reporter
        )
        require_weights(output)
        return peak

    def build(self, model: Model, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter) -> Peak:
        _link_all(checkpoint, output)
        arguments = llm_arguments(_recipe(model))
        (output / ARGUMENTS_FILE).write_text(json.dumps(arguments, indent=1, sort_keys=True))
        (output / LIMITS_FILE).write_text(json.dumps(_limits(output, _recipe(model)), indent=1, sort_keys=True))
        return Peak()

    def assemble(self, model: Model, limits: bytes, output: Path) -> None:
        raise not_served(model)

    def memory_bytes(self, model: Model, engine_bytes: int, limits: bytes) -> int:
        recipe, known = _recipe(model), json.loads(limits)
        return engine_bytes + recipe.max_batch_size * recipe.max_seq_len * int(known["cache_bytes_per_token"])


def llm_arguments(recipe: LlmApiRecipe) -> dict[str, Any]:
    """The keyword arguments of `tensorrt_llm.LLM` in the recipe's version. The recipe's own `llm_args` come last.

    Names from the API's stability lists of 1.0 to 1.3; with 1.0 alone the type of the KV cache has a name of its own.
    """
    arguments: dict[str, Any] = {
        "dtype": recipe.dtype,
        "tensor_parallel_size": recipe.tp_size,
        "pipeline_parallel_size": recipe.pp_size,
        "context_parallel_size": recipe.cp_size,
        "max_batch_size": recipe.max_batch_size,
        "max_input_len": recipe.max_input_len,
        "max_seq_len": recipe.max_seq_len,
        "max_num_tokens": recipe.max_num_tokens,
        "max_beam_width": recipe.max_beam_width,
        "trust_remote_code": False,
    }
    if recipe.moe_tp_size is not None:
        arguments |= {
            "moe_tensor_parallel_size": recipe.moe_tp_size,
            "moe_expert_parallel_size": recipe.moe_ep_size,
        }
    if recipe.kv_cache_dtype != "auto":
        if recipe.runtime.version.release[:2] == (1, 0):
            arguments["kv_cache_dtype"] = recipe.kv_cache_dtype
        else:
            arguments["kv_cache_config"] = {"dtype": recipe.kv_cache_dtype}
    cache = {
        **arguments.pop("kv_cache_config", {}),
        **cast("dict[str, Any]", recipe.llm_args.get("kv_cache_config", {})),
    }
    return {**arguments, **recipe.llm_args, **({"kv_cache_config": cache} if cache else {})}


def _link_all(source: Path, target: Path) -> None:
    """The same files, for no disk space: both lie in one workspace, and nobody writes to them."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            os.link(path, place)


def _limits(engine: Path, recipe: LlmApiRecipe) -> dict[str, int]:
    config = json.loads((engine / "config.json").read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    element = 2 if recipe.kv_cache_dtype == "auto" else 1
    return {"cache_bytes_per_token": 2 * config["num_hidden_layers"] * heads * size * element}
