"""The memory of an engine or a checkpoint by its config: bytes of a token, and the tokens that are planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed, UsageError
from tasks.kinds.llmapi import LlmApiKind
from tasks.kinds.protocol import LIMITS_FILE
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model
from tasks.serving.generation import Files
from tasks.serving.settings import ServingSettings
from tasks.trtllm.kv_cache import SHARE_ALONE, SHARE_BESIDE, WORKSPACE_BYTES, cache_share
from tasks.trtllm.limits import EngineLimits, engine_limits
from tasks.trtllm.llmapi.checkpoint_limits import checkpoint_limits
from tasks.trtllm.planned_limits import planned_limits
from tasks.trtllm.products import gpu_memory_bytes
from tasks.trtllm.recipe import LlmApiFields
from tasks.weights.config import read_facts
from tests.tasks.weights import configs
from tests.tasks.weights.configs import Config, text

GIB = 2**30
RECURRENT: Config = {"state_size": 16, "conv_kernel": 4, "rnn_hidden_size": 5120, "rnn_conv_dim_size": 5120}


def model(kind: str, gpu: str = "NVIDIA H200", arch: str = "sm90", version: str = "1.2.1", **more: Any) -> Model:
    runtime = {"tensorrt_llm": version, "gpu": gpu, "arch": arch, "gpus": 8}
    serving = more.pop("serving", {})
    return Model.model_validate(
        {
            "name": "m",
            "source": {"uri": "hf://some/weights@main"},
            "recipe": {"kind": kind, "runtime": runtime, **more},
            "serving": serving,
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def limits(config: Config, weights: int, served: Model) -> EngineLimits:
    assert isinstance(served.recipe, LlmApiFields)
    return planned_limits(served.recipe, replace(read_facts({"config.json": text(config)}), bytes=weights))


def files(limits: bytes) -> Files:
    """Those of an engine with these limits."""
    return {LIMITS_FILE: limits, "chat_template.jinja": b"{{ messages[0].content }}"}.get


def engine(**changes: Any) -> EngineLimits:
    """The limits of an engine with 24 layers of 14 heads."""
    pretrained: Config = {
        "architecture": "Qwen2ForCausalLM",
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "hidden_size": 896,
        "head_size": 64,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {"kv_cache_quant_algo": None},
        **changes,
    }
    build: Config = {
        "max_batch_size": 8,
        "max_input_len": 1024,
        "max_seq_len": 2048,
        "max_beam_width": 1,
        "plugin_config": {"tokens_per_block": 32},
    }
    return EngineLimits.of(json.dumps({"pretrained_config": pretrained, "build_config": build}), {})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 12_288),
        ({"num_kv_heads_per_layer": [2, *[1] * 23]}, 6_400),
        # A group of layers is repeated, and heads are those of layers with attention alone.
        (
            {
                "num_hidden_layers": 6,
                "num_key_value_heads": 8,
                "layer_types": ["recurrent", "recurrent", "attention"],
                **RECURRENT,
            },
            4_096,
        ),
        ({"num_hidden_layers": 4, "layer_types": ["attention", "no_op"], "num_kv_heads_per_layer": [4, 1]}, 1_280),
        ({"layer_types": ["recurrent"], **RECURRENT}, 0),
        ({"num_key_value_heads": 16, "head_size": 128, "num_hidden_layers": 27}, 221_184),
        (
            {
                "num_key_value_heads": 16,
                "head_size": 128,
                "num_hidden_layers": 27,
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "mapping": {"world_size": 8, "tp_size": 8, "pp_size": 1},
            },
            31_104,
        ),
        ({"quantization": {"kv_cache_quant_algo": "FP8"}, "head_size": None}, 6_144),
    ],
)
def test_the_bytes_of_a_token_in_an_engine(changes: Config, expected: int) -> None:
    assert engine(**changes).cache_bytes_per_token == expected


@pytest.mark.parametrize("changes", [{"num_hidden_layers": None}, {"num_attention_heads": 0}, {"head_size": "64"}])
def test_an_engine_that_does_not_say_it(tmp_path: Path, changes: Config) -> None:
    pretrained: Config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, **changes}
    pretrained["mapping"] = {"world_size": 1, "tp_size": 1, "pp_size": 1}
    build = {"max_batch_size": 8, "max_input_len": 8, "max_seq_len": 16, "max_beam_width": 1}
    document = {"pretrained_config": pretrained, "build_config": {**build, "plugin_config": {"tokens_per_block": 32}}}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        engine_limits(tmp_path)
    assert caught.value.code == "engine-unreadable"


def test_deepseek_v3_on_eight_h200() -> None:
    served = model("llmapi", tp_size=8, serving={"slots": 64, "context_tokens": 8192})
    known = limits(configs.DEEPSEEK_V3, 671 * 10**9, served)
    assert known.cache_bytes_per_token == 70_272
    assert LlmApiKind(served).cache_tokens(known) == 524_288


def test_a_plan_refuses_what_cannot_be_served() -> None:
    facts = replace(read_facts({"config.json": text(configs.DEEPSEEK_V3)}), bytes=671 * 10**9)
    planned = LlmApiKind(model("llmapi", tp_size=8, max_seq_len=200_000)).planned_cache(facts)
    assert planned.bytes_per_token == 70_272 and planned.tokens is not None and "163840 tokens" in planned.notes[0]
    with pytest.raises(UsageError) as caught:
        LlmApiKind(model("llmapi", tp_size=4, max_seq_len=200_000)).require_weights(facts)
    assert caught.value.code == "gpu-too-small" and "tp_size 8" in caught.value.hint
    # Quantization changes the size of the weights, and what is left for the cache.
    assert LlmApiKind(model("llmapi", tp_size=8, quantization="fp8")).planned_cache(facts).tokens is None


def test_deepseek_v3_on_a_b300() -> None:
    served = model("llmapi", "NVIDIA B300 SXM6 AC", "sm103", max_seq_len=131_072)
    assert LlmApiKind(served).cache_tokens(limits(configs.DEEPSEEK_V3, 100 * GIB, served)) == 131_072


def test_attention_of_its_own_requests_has_all_heads() -> None:
    for data_parallel, expected in ((False, 32_768), (True, 131_072)):
        served = model("llmapi", tp_size=4, llm_args={"enable_attention_dp": data_parallel})
        assert limits(configs.LLAMA_3_1_8B, 0, served).cache_bytes_per_token == expected


def test_a_model_that_is_not_understood_gets_a_share(tmp_path: Path) -> None:
    memory = gpu_memory_bytes("NVIDIA H200")
    assert memory is not None
    served = model("llmapi")
    kind, known = LlmApiKind(served), limits({"model_type": "new"}, 20 * GIB, served)
    assert known.cache_bytes_per_token is None and kind.cache_tokens(known) is None
    text = known.to_json().encode()
    assert EngineLimits.from_json(text) == known
    # It stands beside another release, as one with a known cache does.
    assert kind.memory_bytes(0, text) == pytest.approx(memory * SHARE_BESIDE, rel=1e-2)
    kind.assemble(files(text), tmp_path / "release")
    cache: Any = ServingSettings.read(tmp_path / "release/llm/1").llm_arguments["kv_cache_config"]
    assert "max_tokens" not in cache
    assert cache["free_gpu_memory_fraction"] == kind.cache_fraction(known)
    own = model("llmapi", serving={"tensorrt_llm": {"kv_cache_fraction": 0.7}})
    assert LlmApiKind(own).cache_fraction(known) == 0.7
    sized = model("llmapi", serving={"tensorrt_llm": {"kv_cache_bytes": GIB}})
    with pytest.raises(UsageError) as caught:
        LlmApiKind(sized).cache_tokens(known)
    assert caught.value.code == "cache-unknown"


def test_the_share_of_a_model_that_is_not_understood() -> None:
    memory = gpu_memory_bytes("NVIDIA H200")
    assert memory is not None

    def taken(weights: int) -> float:
        share = cache_share(weight_bytes=weights, gpu="NVIDIA H200")
        return (weights + WORKSPACE_BYTES + share * (memory - weights - WORKSPACE_BYTES)) / memory

    assert taken(8 * GIB) == pytest.approx(SHARE_BESIDE, abs=1e-3)
    assert taken(80 * GIB) == pytest.approx(SHARE_ALONE, abs=1e-3)
    with pytest.raises(UsageError) as caught:
        taken(130 * GIB)
    assert caught.value.code == "gpu-too-small"


def test_an_engine_without_attention_needs_no_cache() -> None:
    known = engine(layer_types=["recurrent"], **RECURRENT)
    kind = TrtEngineKind(model("trt-engine", version="0.16.0", serving={"slots": 4}))
    assert kind.cache_tokens(known) == 8192  # as many as are asked for
    states = 4 * 24 * (16 * 5120 * 2 + 2 * 2 * 3 * 5120)
    assert kind.memory_bytes(0, known.to_json().encode()) == WORKSPACE_BYTES + states


def test_states_take_memory_beside_the_cache() -> None:
    served = model("llmapi", tp_size=2, max_batch_size=16, serving={"slots": 64})
    known = limits(configs.NEMOTRON_NANO_30B, 60 * GIB, served)
    states = read_facts({"config.json": text(configs.NEMOTRON_NANO_30B)}).state_bytes
    assert known.state_bytes == states // 2 and EngineLimits.from_json(known.to_json()) == known
    kind = LlmApiKind(served)
    cache = (kind.cache_tokens(known) or 0) * 3072
    assert kind.memory_bytes(0, known.to_json().encode()) == 30 * GIB + WORKSPACE_BYTES + cache + 16 * states // 2
    # Who wrote limits before knew of no states.
    assert "state_bytes" not in limits(configs.LLAMA_3_1_8B, GIB, served).to_json()


def test_a_checkpoint_without_a_config(tmp_path: Path) -> None:
    served = model("llmapi")
    assert isinstance(served.recipe, LlmApiFields)
    with pytest.raises(StepFailed) as caught:
        checkpoint_limits(tmp_path, served.recipe)
    assert caught.value.code == "checkpoint-unfit"


@pytest.mark.parametrize(
    ("version", "windows", "bound"),
    [
        ("1.2.1", [1024, 2048], True),
        ("1.1.0", [1024, 2048], True),
        ("1.0.0", [1024, 2048], False),
        ("1.2.1", [64], False),
    ],
)
def test_a_cache_with_several_windows_is_bound_by_its_bytes(
    tmp_path: Path, version: str, windows: list[int], bound: bool
) -> None:
    served = model("llmapi", version=version, serving={"tensorrt_llm": {"attention_window": windows}})
    known = limits(configs.GEMMA_3_4B, 8 * GIB, served)
    LlmApiKind(served).assemble(files(known.to_json().encode()), tmp_path / "release")
    cache: Any = ServingSettings.read(tmp_path / "release/llm/1").llm_arguments["kv_cache_config"]
    assert cache["max_tokens"] == LlmApiKind(served).cache_tokens(known) == 16384
    assert cache.get("max_gpu_total_bytes") == (16384 * 139_264 if bound else None)
