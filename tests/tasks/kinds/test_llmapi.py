"""Kind `llmapi`: a checkpoint that is linked, not copied, and the arguments of tensorrt_llm.LLM by version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import StepFailed, UsageError
from tasks.kinds.llmapi import ARGUMENTS_FILE, LlmApiKind
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.recipe import LlmApiRecipe
from tasks.models.spec import Model
from tasks.serving.generation import Files, files_in
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.settings import ServingSettings
from tasks.steps.plan import Plan
from tasks.store.identity import Identity
from tasks.store.reporter import Reporter
from tasks.triton.placement import place_release, placed_models
from tasks.triton.protobuf import parse_config
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.llmapi.arguments import WITHOUT_COUNTERPART, check_llm_recipe, llm_arguments, release_arguments
from tasks.trtllm.llmapi.checkpoint_limits import checkpoint_limits
from tasks.trtllm.serving import TensorRtServing
from tasks.trtllm.tools import modelopt_quantize
from tasks.trtllm.tools.commands import modelopt_command
from tests.standin import weights
from tests.tasks.models.mistakes import mistakes


def model(version: str = "1.3.0", serving: dict[str, Any] | None = None, **recipe: Any) -> Model:
    runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 4}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": "llmapi", "runtime": runtime, **recipe},
            "serving": serving or {},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def recipe(version: str = "1.3.0", **changes: Any) -> LlmApiRecipe:
    found = model(version, **changes).recipe
    assert isinstance(found, LlmApiRecipe)
    return found


def engine(checkpoint: Path, limits: EngineLimits) -> Files:
    """The files of an engine, of which `build` writes the limits."""
    return lambda name: limits.to_json().encode() if name == LIMITS_FILE else files_in(checkpoint)(name)


def test_an_unquantized_model_needs_no_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", "local:/nonexistent/python3")
    snapshot = weights.make(tmp_path / "snapshot")
    checkpoint, engine = tmp_path / "checkpoint", tmp_path / "engine"
    checkpoint.mkdir()
    engine.mkdir()
    LlmApiKind(model()).require_worker()
    LlmApiKind(model()).convert(snapshot, None, checkpoint, tmp_path, Reporter())
    LlmApiKind(model(tp_size=2)).build(checkpoint, engine, tmp_path, Reporter())
    for path in snapshot.iterdir():
        assert (engine / path.name).stat().st_ino == path.stat().st_ino  # no second copy on this disk
    assert json.loads((engine / ARGUMENTS_FILE).read_text())["tensor_parallel_size"] == 2
    limits = json.loads((engine / "limits.json").read_text())
    # Two layers of four heads of eight numbers, on two GPUs.
    assert limits["cache_bytes_per_token"] == 2 * 2 * 2 * 8 * 2
    weight_bytes = sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))
    assert weight_bytes <= 2 * limits["weight_bytes"] <= weight_bytes + 1


def test_a_model_without_its_weights(tmp_path: Path) -> None:
    snapshot = weights.make(tmp_path / "snapshot")
    next(snapshot.glob("*.safetensors")).unlink()
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    with pytest.raises(StepFailed) as caught:
        LlmApiKind(model()).convert(snapshot, None, checkpoint, tmp_path, Reporter())
    assert caught.value.code == "checkpoint-unfit" and ".safetensors" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "quantized", "bits"),
    [
        ({}, None, 16.0),
        ({"kv_cache_dtype": "fp8"}, None, 8.0),
        ({}, "FP8", 8.0),
        ({}, "NVFP4", 4.5),
        ({"kv_cache_dtype": "fp8", "pp_size": 2}, None, 4.0),
    ],
)
def test_the_cache_is_as_large_as_its_numbers(
    tmp_path: Path, changes: dict[str, Any], quantized: str | None, bits: float
) -> None:
    folder = weights.make(tmp_path / "checkpoint")
    if quantized is not None:
        quantization = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": quantized}}
        (folder / "hf_quant_config.json").write_text(json.dumps(quantization))
    assert checkpoint_limits(folder, recipe(**changes)).cache_bytes_per_token == 2 * 2 * 4 * 8 * bits / 8


def test_a_config_that_says_nothing_of_the_cache(tmp_path: Path) -> None:
    folder = weights.make(tmp_path / "checkpoint")
    (folder / "config.json").write_text("{}")
    with pytest.raises(StepFailed) as caught:
        checkpoint_limits(folder, recipe())
    assert caught.value.code == "checkpoint-unfit" and "num_hidden_layers" in caught.value.message


def test_the_type_of_the_cache_goes_with_the_rest_of_its_config() -> None:
    cache = {"tokens_per_block": 64}
    arguments = llm_arguments(recipe("1.1.0", kv_cache_dtype="fp8", llm_args={"kv_cache_config": cache}))
    assert arguments["kv_cache_config"] == {"dtype": "fp8", "tokens_per_block": 64}
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


def released(version: str = "1.2.1", parameters: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return release_arguments(
        recipe(version, **changes),
        TensorRtServing.model_validate(parameters or {}),
        max_batch_size=8,
        max_seq_len=2048,
        kv_cache_tokens=16384,
    )


def test_a_release_has_a_cache_of_fixed_size() -> None:
    arguments = released(kv_cache_dtype="fp8")
    assert arguments["kv_cache_config"] == {"dtype": "fp8", "max_tokens": 16384, "free_gpu_memory_fraction": 0.99}
    assert (arguments["max_batch_size"], arguments["max_seq_len"], arguments["max_beam_width"]) == (8, 2048, 1)
    by_fraction = release_arguments(
        recipe(),
        TensorRtServing(kv_cache_fraction=0.5),
        max_batch_size=8,
        max_seq_len=2048,
        kv_cache_tokens=None,
    )
    assert by_fraction["kv_cache_config"] == {"free_gpu_memory_fraction": 0.5}


@pytest.mark.parametrize(
    ("version", "sampler"),
    [
        ("1.0.0", {"enable_trtllm_sampler": True}),
        ("1.1.0", {"sampler_type": "TRTLLMSampler"}),
        ("1.3.0rc25", {"sampler_type": "TRTLLMSampler"}),
        ("1.3.0rc26", {}),
        ("1.3.0", {}),
    ],
)
def test_the_sampler_is_the_one_that_ignores_nothing(version: str, sampler: dict[str, Any]) -> None:
    arguments = released(version)
    assert {name: value for name, value in arguments.items() if "sampler" in name} == sampler
    if sampler:
        (name,) = sampler
        other = "TorchSampler" if name == "sampler_type" else False
        assert released(version, llm_args={name: other})[name] == other


def test_serving_parameters_become_arguments() -> None:
    arguments = released(
        parameters={
            "max_beam_width": 3,
            "scheduler_policy": "max_utilization",
            "kv_cache_reuse": False,
            "host_cache_bytes": 2**30,
            "attention_window": [512, 2048],
            "chunked_context": True,
            "guided_decoding": "xgrammar",
            "lora_cache": {"gpu_fraction": 0.1},
        },
        llm_args={"kv_cache_config": {"enable_partial_reuse": False}},
    )
    assert arguments["kv_cache_config"] == {
        "max_tokens": 16384,
        "free_gpu_memory_fraction": 0.99,
        "enable_block_reuse": False,
        "host_cache_size": 2**30,
        "max_attention_window": [512, 2048],
        "enable_partial_reuse": False,
    }
    assert arguments["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert arguments["enable_chunked_prefill"] is True and arguments["guided_decoding_backend"] == "xgrammar"
    assert arguments["peft_cache_config"]["device_cache_percent"] == 0.1
    assert arguments["max_beam_width"] == 3
    assert arguments["disable_overlap_scheduler"] is True and arguments["cuda_graph_config"] is None


UNLIKE: dict[str, Any] = {
    "decoupled": False,
    "batching_strategy": "v1",
    "sink_tokens": 4,
    "exclude_input_in_output": True,
    "accumulate_tokens": True,
    "queue_delay_microseconds": 1,
    "queue_size": 1,
    "gpu_device_ids": [[1]],
    "decoding_mode": "top_k",
    "multi_block_mode": True,
    "context_fmha_fp32_acc": True,
    "gpu_weights_fraction": 0.5,
    "xgrammar_tokenizer_info": "/info.json",
    "llm_instances": 2,
    "preprocessing_instances": 2,
    "postprocessing_instances": 2,
    "bls_instances": 2,
    "extra": {"tensorrt_llm": {"some": "value"}},
}


def test_every_serving_parameter_is_translated_or_refused_by_name() -> None:
    assert UNLIKE.keys() == WITHOUT_COUNTERPART.keys()
    for field, value in UNLIKE.items():
        also = {"guided_decoding": "xgrammar"} if field == "xgrammar_tokenizer_info" else {}
        with pytest.raises(UsageError) as caught:
            check_llm_recipe(recipe(), TensorRtServing.model_validate({field: value, **also}))
        assert caught.value.code == "serving-unfit" and caught.value.message.startswith(field)
    translated = {
        *("max_beam_width", "scheduler_policy", "kv_cache_tokens", "kv_cache_bytes", "kv_cache_fraction"),
        *("kv_cache_reuse", "host_cache_bytes", "attention_window", "chunked_context", "lora_cache", "guided_decoding"),
    }
    assert translated | UNLIKE.keys() == TensorRtServing.model_fields.keys()


@pytest.mark.parametrize(
    ("serving", "changes", "place", "fact"),
    [
        ({"tensorrt_llm": {"queue_size": 3}}, {}, "serving", "queue_size"),
        ({"tensorrt_llm": {"max_beam_width": 4}}, {}, "serving", "max_beam_width 4"),
        ({"tensorrt_llm": {"kv_cache_fraction": 1.0}}, {}, "serving", "kv_cache_fraction"),
        ({"tensorrt_llm": {"lora_cache": {"prefetch_folder": "/lora"}}}, {}, "serving", "lora_cache.prefetch_folder"),
        ({}, {"llm_args": {"trust_remote_code": True}}, "recipe.llm_args", "trust_remote_code"),
        ({}, {"kv_cache_dtype": "int8"}, "recipe.kv_cache_dtype", "int8"),
    ],
)
def test_a_models_file_is_refused_with_the_reason(serving: Any, changes: dict[str, Any], place: str, fact: str) -> None:
    with pytest.raises(ValidationError) as caught:
        model(serving=serving, **changes)
    (detail,) = caught.value.errors()
    assert mistakes(caught.value) == {place: "value_error"} and fact in detail["msg"]


def test_a_release_tells_llm_all_it_needs(tmp_path: Path) -> None:
    serving = {"slots": 100, "context_tokens": 1024, "defaults": {"temperature": 0.5}}
    some = model("1.2.1", serving, max_seq_len=4096, max_num_tokens=512, max_input_len=900)
    limits = checkpoint_limits(weights.make(tmp_path / "checkpoint"), recipe(max_seq_len=4096, max_input_len=900))
    LlmApiKind(some).assemble(engine(tmp_path / "checkpoint", limits), tmp_path / "release")
    settings = ServingSettings.read(tmp_path / "release/llm/1")
    assert (settings.engine, settings.engine_path, settings.tensorrt_llm) == ("llmapi", "engine", "1.2.1")
    # Without chunks a prompt goes through the model at once.
    assert (settings.context_tokens, settings.max_input_tokens, settings.sampling.temperature) == (1024, 512, 0.5)
    assert settings.llm_arguments["max_batch_size"] == 64 and settings.llm_arguments["max_seq_len"] == 1024
    # Room for one sequence of the checkpoint at least, for those that run at once by default.
    assert settings.llm_arguments["kv_cache_config"]["max_tokens"] == 64 * 1024
    needed = 64 * 1024 * (limits.cache_bytes_per_token or 0)
    assert LlmApiKind(some).memory_bytes(0, limits.to_json().encode()) > needed > 0


def test_the_checkpoint_is_read_where_the_node_keeps_it(tmp_path: Path) -> None:
    checkpoint = weights.make(tmp_path / "checkpoint")
    LlmApiKind(model()).assemble(engine(checkpoint, checkpoint_limits(checkpoint, recipe())), tmp_path / "release")
    (tmp_path / "models").mkdir()
    place_release(tmp_path / "release", checkpoint, tmp_path / "models", "tiny", 7, grpc="")
    assert placed_models(tmp_path / "models", "tiny", 7) == ("tiny--r7--llm", "tiny--r7")
    llm = tmp_path / "models/tiny--r7--llm"
    assert parse_config((llm / "config.pbtxt").read_text()).parameters[ENGINE_PATH].string_value == str(checkpoint)
    assert {path.name for path in (llm / "1").iterdir() if path.suffix != ".py"} == {"serving.json"}
    assert not any(path.stat().st_mode & 0o222 for path in checkpoint.iterdir())


def test_a_repository_follows_serving_product_and_version() -> None:
    engine = Identity({"engine": "some"})
    first = LlmApiKind(model()).repository_identity(engine)
    assert LlmApiKind(model()).repository_identity(engine) == first
    for other in (model("1.4.0"), model(serving={"slots": 9})):
        assert LlmApiKind(other).repository_identity(engine) != first
