"""Kind `llmapi`: a checkpoint that is linked, not copied, and the arguments of tensorrt_llm.LLM by version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed
from tasks.engines.llmapi import ARGUMENTS_FILE, LlmApi, llm_arguments
from tasks.engines.reporter import Reporter
from tasks.identity import Identity
from tasks.plan import Plan
from tasks.spec import Model
from tasks.trtllm import modelopt_quantize
from tasks.trtllm.commands import modelopt_command
from tasks.trtllm.recipe import LlmApiRecipe
from tests.standin import weights


def model(version: str = "1.3.0", **recipe: Any) -> Model:
    runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 4}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": "llmapi", "runtime": runtime, **recipe},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def recipe(version: str = "1.3.0", **changes: Any) -> LlmApiRecipe:
    found = model(version, **changes).recipe
    assert isinstance(found, LlmApiRecipe)
    return found


def test_an_unquantized_model_needs_no_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", "local:/nonexistent/python3")
    snapshot = weights.make(tmp_path / "snapshot")
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"
    checkpoint.mkdir()
    engine.mkdir()
    LlmApi().require_worker(model())
    LlmApi().convert(model(), snapshot, checkpoint, tmp_path, Reporter())
    LlmApi().build(model(tp_size=2), checkpoint, engine, tmp_path, Reporter())
    for path in snapshot.iterdir():
        assert (engine / path.name).stat().st_ino == path.stat().st_ino  # no second copy on this disk
    assert json.loads((engine / ARGUMENTS_FILE).read_text())["tensor_parallel_size"] == 2
    assert json.loads((engine / "limits.json").read_text()) == {"cache_bytes_per_token": 2 * 2 * 4 * 8 * 2}


def test_a_model_without_its_weights(tmp_path: Path) -> None:
    snapshot = weights.make(tmp_path / "snapshot")
    next(snapshot.glob("*.safetensors")).unlink()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    with pytest.raises(StepFailed, match="is missing") as caught:
        LlmApi().convert(model(), snapshot, checkpoint, tmp_path, Reporter())
    assert caught.value.code == "checkpoint-unfit"


def test_the_type_of_the_cache_has_another_name_in_1_0() -> None:
    assert llm_arguments(recipe("1.0.0", kv_cache_dtype="fp8"))["kv_cache_dtype"] == "fp8"
    cache = {"tokens_per_block": 64}
    later = llm_arguments(recipe("1.1.0", kv_cache_dtype="fp8", llm_args={"kv_cache_config": cache}))
    assert later["kv_cache_config"] == {"dtype": "fp8", "tokens_per_block": 64} and "kv_cache_dtype" not in later
    assert "kv_cache_config" not in llm_arguments(recipe())


def test_the_recipes_own_arguments_come_last() -> None:
    arguments = llm_arguments(recipe(llm_args={"max_batch_size": 7, "enable_chunked_prefill": True}))
    assert arguments["max_batch_size"] == 7 and arguments["enable_chunked_prefill"] is True
    assert arguments["trust_remote_code"] is False


@pytest.mark.parametrize("quantization", ["fp8", "fp8_rowwise", "int4_awq", "w4a8_awq"])
def test_modelopt_is_asked_as_its_program_takes_it(quantization: str) -> None:
    command = modelopt_command(recipe(quantization=quantization, kv_cache_dtype="fp8"), "model", "checkpoint")
    options = modelopt_quantize.parser().parse_args(command.arguments)
    assert (options.qformat, options.kv_cache_dtype, options.calib_size) == (quantization, "fp8", 512)
    assert set(modelopt_quantize.CONFIGURATIONS) | {"none"} == {
        *("none", "fp8", "fp8_rowwise", "int4_awq", "w4a8_awq", "nvfp4")
    }


def test_identities_without_quantization_follow_the_weights_alone() -> None:
    snapshot = Identity({"source": "some"})
    plans = [Plan.of(model("1.3.0"), snapshot), Plan.of(model("1.4.0", dtype="float16"), snapshot)]
    assert plans[0].checkpoint == plans[1].checkpoint and plans[0].engine != plans[1].engine
    quantized = [Plan.of(model(version, quantization="fp8"), snapshot) for version in ("1.3.0", "1.4.0")]
    assert quantized[0].checkpoint != quantized[1].checkpoint
