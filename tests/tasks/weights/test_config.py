"""What `config.json` says: sizes, the KV cache of each layer, quantization. And what it does not say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from infra.errors import SourceError
from tasks.trtllm.limits import cache_bytes_per_token
from tasks.weights.config import read_facts
from tasks.weights.facts import WeightsFacts
from tasks.weights.files import require_shards, with_files
from tests.tasks.weights import configs
from tests.tasks.weights.configs import CACHE_BYTES, Config, text


def facts(config: Config, **files: Any) -> WeightsFacts:
    others = {f"{name}.json": json.dumps(content).encode() for name, content in files.items()}
    return read_facts({"config.json": text(config), **others})


def cache_bytes(config: Config, tp_size: int = 1, pp_size: int = 1, kept_as: str | None = None) -> int:
    layers = facts(config).cache
    assert layers is not None
    return cache_bytes_per_token(layers, kept_as=kept_as, tp_size=tp_size, pp_size=pp_size)


@pytest.mark.parametrize("name", CACHE_BYTES)
def test_the_bytes_of_a_token(name: str) -> None:
    config, expected = CACHE_BYTES[name]
    assert cache_bytes(config) == expected


def test_latent_attention_is_not_divided() -> None:
    assert cache_bytes(configs.DEEPSEEK_V3, tp_size=8) == 70_272
    assert cache_bytes(configs.LLAMA_3_1_8B, tp_size=8) == 131_072 // 8
    # With more GPUs than heads some hold the same head.
    assert cache_bytes(configs.LLAMA_3_1_8B, tp_size=16) == 131_072 // 8
    assert cache_bytes(configs.DEEPSEEK_V3, kept_as="FP8") == 70_272 // 2


def test_the_first_stages_hold_what_is_left_over() -> None:
    assert cache_bytes(configs.DEEPSEEK_V3, pp_size=4) == 16 * 576 * 2
    # The layers with attention are 5, 12, 19, 26, 33 and 42 of 52.
    assert [cache_bytes(configs.NEMOTRON_NANO_30B, pp_size=size) for size in (2, 3, 4)] == [3072, 3072, 2048]


def test_the_states_of_layers_without_attention() -> None:
    # 23 layers with 64 heads of 64 x 128 numbers, and a convolution over 64 x 64 + 2 x 8 x 128.
    state, convolution = 64 * 64 * 128, (64 * 64 + 2 * 8 * 128) * 3
    assert facts(configs.NEMOTRON_NANO_30B).state_bytes == 23 * (2 * state + 2 * convolution)
    wider = configs.NEMOTRON_NANO_30B | {"mamba_ssm_cache_dtype": "float32"}
    assert facts(wider).state_bytes == 23 * (4 * state + 2 * convolution)
    assert facts(configs.QWEN3_NEXT_80B).state_bytes == 36 * 2 * (32 * 128 * 128 + 8192 * 3)
    assert facts(configs.LLAMA_3_1_8B).state_bytes == facts(configs.GEMMA_3_4B).state_bytes == 0


def test_the_windows_of_the_layers() -> None:
    assert facts(configs.GEMMA_3_4B).windows[:7] == (1024,) * 5 + (None, 1024)
    assert facts(configs.GPT_OSS_20B).windows[:2] == (128, None)
    assert facts(CACHE_BYTES["gemma-2-9b"][0]).windows[:2] == (4096, None)
    assert facts(CACHE_BYTES["mistral-7b"][0]).windows == (4096,) * 32
    assert facts(CACHE_BYTES["command-r7b"][0]).windows[:4] == (4096, 4096, 4096, None)
    assert facts(configs.LLAMA_4_SCOUT).windows[:4] == (8192, 8192, 8192, None)
    # A class names a window, and the file does not use it.
    assert facts(CACHE_BYTES["qwen2.5-7b"][0]).windows == ()
    slides = CACHE_BYTES["qwen2.5-7b"][0] | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 21}
    assert facts(slides).windows == (None,) * 21 + (64,) * 7
    pattern = configs.plain(
        "Exaone4ForCausalLM", "exaone4", 8, 8, 8, 64, sliding_window=32, sliding_window_pattern="LLG"
    )
    assert facts(pattern).windows == (32, 32, None, 32, 32, None, 32, 32)


def test_the_facts_beside_the_cache() -> None:
    found = facts(configs.DEEPSEEK_V3)
    assert (found.architecture, found.model_type, found.dtype) == ("DeepseekV3ForCausalLM", "deepseek_v3", "bfloat16")
    assert (found.layers, found.heads, found.hidden_size, found.vocabulary) == (61, 128, 7168, 129280)
    assert (found.experts, found.tied_embeddings, found.key_value_heads) == (256, False, (1,))
    assert found.context == 163840  # of before the scaling 4096 x 40
    small = facts(configs.GEMMA_3_4B)
    assert (small.heads, small.head_size, small.vocabulary, small.tied_embeddings) == (8, 256, 262208, True)
    assert small.context == 131072 and small.architecture == "Gemma3ForConditionalGeneration"
    assert facts(configs.CHATGLM3_6B).vocabulary == 65024 and facts(configs.CHATGLM3_6B).context == 8192
    assert facts(configs.NEMOTRON_NAS).key_value_heads == (4, 8)


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 32768),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096}, 32768),
        ({"rope_type": "linear", "factor": 2.0}, 65536),
        ({"rope_type": "dynamic", "factor": 2}, 65536),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 32768),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, 32768),
    ],
)
def test_the_context_with_its_scaling(scaling: Config | None, context: int) -> None:
    config = CACHE_BYTES["qwen2.5-7b"][0] | {"max_position_embeddings": 32768, "rope_scaling": scaling}
    assert facts(config).context == context


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"architectures": ["NewForCausalLM"], "model_type": "new", "num_hidden_layers": 2}, "new"),
        (configs.GEMMA_3_4B | {"model_type": "new", "text_config": {"hidden_size": 64}}, "new"),
        (configs.DEEPSEEK_V3 | {"index_topk": 2048}, "index_topk"),
        (configs.LLAMA_3_1_8B | {"num_kv_shared_layers": 4}, "num_kv_shared_layers"),
        (configs.LLAMA_3_1_8B | {"layer_types": ["full_attention", "indexed_attention"] * 16}, "indexed_attention"),
    ],
)
def test_a_cache_that_is_not_understood(config: Config, word: str) -> None:
    found = facts(config)
    assert found.cache is None and word in found.unclear
    assert found.windows == () and found.key_value_heads == ()


NONSENSE: list[tuple[Config, str]] = [
    ({}, "num_hidden_layers"),
    (configs.LLAMA_3_1_8B | {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    (configs.LLAMA_3_1_8B | {"num_hidden_layers": "32"}, "num_hidden_layers"),
    (configs.LLAMA_3_1_8B | {"num_attention_heads": 0}, "num_attention_heads"),
    (configs.LLAMA_3_1_8B | {"layer_types": ["full_attention"]}, "32"),
    (configs.NEMOTRON_NAS | {"block_configs": [{}]}, "block_configs"),
    (configs.NEMOTRON_NAS | {"block_configs": [{"attention": {"n_heads_in_group": 128}}] * 4}, "groups of 128"),
    (configs.NEMOTRON_NAS | {"block_configs": [{"attention": {"n_heads_in_group": -8}}] * 4}, "n_heads_in_group"),
    (configs.LLAMA_3_1_8B | {"num_key_value_heads": -8}, "num_key_value_heads"),
    (configs.LLAMA_3_1_8B | {"head_dim": -128}, "head_dim"),
    (configs.LLAMA_3_1_8B | {"hidden_size": 3}, "32 heads share"),
    (configs.LLAMA_3_1_8B | {"max_position_embeddings": -1}, "max_position_embeddings"),
    (configs.LLAMA_3_1_8B | {"num_local_experts": -1}, "num_local_experts"),
    (configs.DEEPSEEK_V3 | {"kv_lora_rank": -512}, "kv_lora_rank"),
    *(
        (configs.LLAMA_3_1_8B | {"rope_scaling": {"type": kind, "factor": factor}}, "factor")
        for kind in ("linear", "yarn")
        for factor in (math.nan, math.inf, -2, 10**400)
    ),
    (configs.DEEPSEEK_V3 | {"qk_rope_head_dim": None}, "qk_rope_head_dim"),
]


@pytest.mark.parametrize("window", [0, -1, None])
def test_a_window_of_none_is_no_window(window: int | None) -> None:
    found = facts(configs.GPT_OSS_20B | {"sliding_window": window})
    assert found.windows == () and cache_bytes(configs.GPT_OSS_20B | {"sliding_window": window}) == 49_152


def test_no_name_moves_the_cursor_of_a_terminal() -> None:
    evil = "Llama\x1b[31m\nForCausalLM"
    found = facts(configs.LLAMA_3_1_8B | {"architectures": [evil, "b"], "quantization_config": {"quant_method": evil}})
    assert found.architecture == "" and str(found.quantization) == "unnamed"


@pytest.mark.parametrize(("config", "word"), NONSENSE)
def test_a_config_that_makes_no_sense(config: Config, word: str) -> None:
    with pytest.raises(SourceError) as caught:
        facts(config)
    assert caught.value.code == "config-unreadable" and word in caught.value.message and caught.value.hint


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_file_that_holds_no_object(content: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        read_facts({"config.json": content})
    assert caught.value.code == "config-unreadable"


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (configs.DEEPSEEK_V3, {}, "fp8 (blocks of 128 x 128)"),
        (configs.GPT_OSS_20B, {}, "mxfp4"),
        (configs.LLAMA_3_1_8B, {}, "None"),
        (
            configs.LLAMA_3_1_8B
            | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}},
            {},
            "gptq (4 bits, groups of 128, desc_act)",
        ),
        (configs.LLAMA_3_1_8B, {"quantize_config": {"bits": 4, "group_size": -1}}, "gptq (4 bits)"),
        (
            configs.LLAMA_3_1_8B | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}},
            {},
            "awq (4 bits, groups of 128)",
        ),
        (
            configs.LLAMA_3_1_8B,
            {
                "hf_quant_config": {
                    "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16}
                }
            },
            "modelopt (NVFP4, groups of 16)",
        ),
        (
            configs.LLAMA_3_1_8B | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
            {},
            "modelopt (FP8)",
        ),
        (
            configs.GEMMA_3_4B
            | {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
            {},
            "compressed-tensors (pack-quantized)",
        ),
        (
            configs.LLAMA_3_1_8B | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            {},
            "bitsandbytes (4 bits)",
        ),
    ],
)
def test_how_a_checkpoint_is_quantized_already(config: Config, files: Config, expected: str) -> None:
    assert str(facts(config, **files).quantization) == expected


def test_the_format_of_the_cache_that_goes_with_quantized_weights() -> None:
    modelopt = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    found = facts(configs.LLAMA_3_1_8B, hf_quant_config=modelopt).quantization
    assert found is not None and found.cache == "FP8"
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    found = facts(configs.LLAMA_3_1_8B | {"quantization_config": scheme}).quantization
    assert found is not None and found.cache == "FP8"


def test_shards_that_are_missing() -> None:
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    require_shards(names, index.encode())
    with pytest.raises(SourceError) as caught:
        require_shards(names[:2], index.encode())
    assert caught.value.code == "shards-missing" and "model-00002-of-00002" in caught.value.message


def test_the_files_of_weights() -> None:
    found = with_files(facts(configs.LLAMA_3_1_8B), {"config.json": 7, "b.safetensors": 20, "a.safetensors": 10})
    assert found.files == ("a.safetensors", "b.safetensors") and found.bytes == 30
    assert (
        with_files(found, {"a.safetensors": None}).bytes is None and with_files(found, {"config.json": 7}).bytes is None
    )
