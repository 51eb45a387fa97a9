"""Weights that are quantized already: what each kind and version makes of them, or what would do instead."""

from __future__ import annotations

from typing import Any

import pytest

from infra.errors import UsageError
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.trtllm.prequantized import convert_options, require_mergeable, require_taken
from tasks.trtllm.recipe import TensorRtLlmFields
from tasks.weights.config import read_facts
from tasks.weights.facts import WeightsFacts
from tasks.weights.files import with_files
from tests.standin import facts as standin
from tests.standin.build import TOOL as BUILD
from tests.standin.convert import TOOL
from tests.tasks.trtllm.test_limits import model
from tests.tasks.weights import configs
from tests.tasks.weights.configs import CACHE_BYTES, text

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
FP8 = {"quant_method": "compressed-tensors", "format": "float-quantized"}


def facts(quantization: dict[str, Any], *, shards: int = 1) -> WeightsFacts:
    found = read_facts({"config.json": text(configs.LLAMA_3_1_8B | {"quantization_config": quantization})})
    names = [f"model-{number}.safetensors" for number in range(shards)] if shards > 1 else ["model.safetensors"]
    return with_files(found, dict.fromkeys(names, 10))


def require(kind: str, version: str, found: WeightsFacts, **recipe: Any) -> None:
    fields = model(kind, version=version, **recipe).recipe
    assert isinstance(fields, TensorRtLlmFields)
    require_taken(fields, found)


@pytest.mark.parametrize(
    ("kind", "version", "quantization"),
    [
        ("trt-engine", "0.8.0", GPTQ),
        ("trt-engine", "0.12.0", GPTQ),
        ("trt-engine", "1.2.1", GPTQ),
        ("trt-engine", "0.16.0", AWQ),
        ("trt-engine", "0.12.0", {"quant_method": "fbgemm_fp8"}),
        ("llmapi", "1.0.0", configs.DEEPSEEK_V3["quantization_config"]),
        ("llmapi", "1.1.0", configs.GPT_OSS_20B["quantization_config"]),
        ("llmapi", "1.2.1", {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
        ("llmapi", "1.3.0", FP8),
    ],
)
def test_what_a_version_takes(kind: str, version: str, quantization: dict[str, Any]) -> None:
    require(kind, version, facts(quantization))


def test_an_adapter_is_not_merged_into_packed_weights() -> None:
    packed = with_files(facts(GPTQ), {"model.safetensors": 10})
    merging = model("trt-engine", version="0.16.0").model_copy(update={"adapter": "hf://some/adapter@main"})
    TrtEngineKind(model("trt-engine", version="0.16.0")).require_weights(packed)
    with pytest.raises(UsageError) as caught:
        TrtEngineKind(merging).require_weights(packed)
    assert caught.value.code == "weights-quantized" and "gptq" in caught.value.message
    # The attention of gpt-oss is bfloat16, whatever its experts are.
    require_mergeable(facts(configs.GPT_OSS_20B["quantization_config"]))


@pytest.mark.parametrize(
    ("kind", "version", "quantization", "hint"),
    [
        ("trt-engine", "0.15.0", AWQ, "TensorRT-LLM 0.16 to 1.2"),
        ("trt-engine", "0.11.0", {"quant_method": "fbgemm_fp8"}, "TensorRT-LLM 0.12 to 1.2"),
        ("trt-engine", "1.2.1", configs.DEEPSEEK_V3["quantization_config"], "kind llmapi with TensorRT-LLM 1.0"),
        ("trt-engine", "1.2.1", configs.GPT_OSS_20B["quantization_config"], "kind llmapi"),
        ("trt-engine", "1.2.1", {"quant_method": "modelopt", "quant_algo": "FP8"}, "kind llmapi"),
        ("trt-engine", "0.12.0", GPTQ | {"desc_act": True}, "unquantized"),
        ("trt-engine", "0.15.0", GPTQ | {"bits": 8}, "unquantized"),
        ("llmapi", "1.4.0rc1", GPTQ, "kind trt-engine with TensorRT-LLM 0.8 to 1.2"),
        ("llmapi", "1.2.1", AWQ, "kind trt-engine with TensorRT-LLM 0.16 to 1.2"),
        ("llmapi", "1.2.1", FP8, "kind llmapi with TensorRT-LLM 1.3 or later"),
        ("llmapi", "1.4.0rc1", PACKED, "unquantized"),
        ("llmapi", "1.2.1", {"quant_method": "fp8", "weight_block_size": [64, 64]}, "unquantized"),
        ("llmapi", "1.2.1", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "unquantized"),
        ("trt-engine", "1.2.1", {"quant_method": "quark"}, "unquantized"),
    ],
)
def test_what_it_does_not_take(kind: str, version: str, quantization: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        require(kind, version, facts(quantization))
    assert caught.value.code == "weights-quantized" and hint in caught.value.hint
    assert str(facts(quantization).quantization) in caught.value.message


@pytest.mark.parametrize("kind", ["trt-engine", "llmapi"])
def test_nothing_is_quantized_twice(kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        require(kind, "1.2.1", facts(GPTQ), quantization="fp8")
    assert caught.value.code == "weights-quantized" and "quantization: none" in caught.value.hint


def test_old_versions_read_one_file() -> None:
    require("trt-engine", "0.13.0", facts(GPTQ, shards=3))
    with pytest.raises(UsageError) as caught:
        require("trt-engine", "0.12.0", facts(GPTQ, shards=3))
    assert caught.value.code == "weights-quantized" and "0.13" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "path"),
    [
        ("0.8.0", ("--ammo_quant_ckpt_path", "model/model.safetensors")),
        ("0.10.0", ("--modelopt_quant_ckpt_path", "model/model.safetensors")),
        ("0.12.0", ("--quant_ckpt_path", "model/model.safetensors")),
        ("0.13.0", ("--quant_ckpt_path", "model")),
        ("0.15.0", ("--quant_ckpt_path", "model")),
    ],
)
def test_the_command_in_the_words_of_the_version(version: str, path: tuple[str, str]) -> None:
    convert, build, _ = TrtEngineKind(model("trt-engine", version=version)).commands(facts(GPTQ))
    given = standin.parser(TOOL, version).parse_args(convert[2:])
    assert (given.use_weight_only, given.weight_only_precision, given.per_group, given.group_size) == (
        *(True, "int4_gptq", True, 64),
    )
    assert convert[convert.index(path[0]) + 1] == path[1]
    # Fused layers have no such weights: up to 0.12 trtllm-build stops.
    fused = standin.parser(BUILD, version).parse_args(build[1:]).use_fused_mlp
    assert fused in (False, "disable")


def test_from_0_16_on_the_script_sees_it_by_itself() -> None:
    for version in ("0.16.0", "1.2.1"):
        kind = TrtEngineKind(model("trt-engine", version=version))
        assert kind.commands(facts(GPTQ))[0] == kind.commands()[0]
        assert convert_options("llama", facts(AWQ), kind.recipe.runtime.version, "model") == {}


def test_other_scripts() -> None:
    version = TrtEngineKind(model("trt-engine", version="0.12.0")).recipe.runtime.version
    assert convert_options("qwen", facts(GPTQ), version, "model") == {
        "--use_weight_only": True,
        "--weight_only_precision": "int4_gptq",
        "--per_group": True,
        "--group_size": 64,
    }
    assert "--per_group" not in convert_options("baichuan", facts(GPTQ), version, "model")
    unquantized = read_facts({"config.json": text(CACHE_BYTES["gemma-7b"][0])})
    assert convert_options("gemma", unquantized, version, "model") == {}
    with pytest.raises(UsageError) as caught:
        convert_options("gemma", facts(GPTQ), version, "model")
    assert caught.value.code == "weights-quantized" and "gemma" in caught.value.message
