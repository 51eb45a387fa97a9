"""`config.json` of models that people serve, as far as it says what they are: sizes, layers, quantization."""

from __future__ import annotations

import json
from typing import Any

Config = dict[str, Any]


def plain(architecture: str, model_type: str, layers: int, heads: int, pairs: int, hidden: int, **more: Any) -> Config:
    """A model whose layers are alike: heads of queries, heads of keys and values, numbers of a hidden state."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": pairs,
        "hidden_size": hidden,
        "torch_dtype": "bfloat16",
        **more,
    }


LLAMA_3_1_8B = plain("LlamaForCausalLM", "llama", 32, 32, 8, 4096, max_position_embeddings=131072, vocab_size=128256)
DEEPSEEK_V3 = plain(
    "DeepseekV3ForCausalLM",
    "deepseek_v3",
    *(61, 128, 128, 7168),
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=256,
    max_position_embeddings=163840,
    rope_scaling={"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    vocab_size=129280,
    tie_word_embeddings=False,
    quantization_config={
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
)
DEEPSEEK_V2_LITE = plain(
    "DeepseekV2ForCausalLM", "deepseek_v2", 27, 16, 16, 2048, kv_lora_rank=512, qk_rope_head_dim=64, n_routed_experts=64
)
GEMMA_3_4B: Config = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}
GPT_OSS_20B = plain(
    "GptOssForCausalLM",
    "gpt_oss",
    *(24, 64, 8, 2880),
    head_dim=64,
    sliding_window=128,
    num_local_experts=32,
    layer_types=["sliding_attention", "full_attention"] * 12,
    quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
)
NEMOTRON_NANO_30B = plain(
    "NemotronHForCausalLM",
    "nemotron_h",
    *(52, 32, 2, 2688),
    head_dim=128,
    hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    mamba_num_heads=64,
    mamba_head_dim=64,
    ssm_state_size=128,
    n_groups=8,
    conv_kernel=4,
)
QWEN3_NEXT_80B = plain(
    "Qwen3NextForCausalLM",
    "qwen3_next",
    *(48, 16, 2, 2048),
    head_dim=256,
    full_attention_interval=4,
    num_experts=512,
    linear_num_value_heads=32,
    linear_num_key_heads=16,
    linear_value_head_dim=128,
    linear_key_head_dim=128,
    linear_conv_kernel_dim=4,
)
LLAMA_4_SCOUT: Config = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "text_config": {"model_type": "llama4_text", "num_hidden_layers": 48, "attention_chunk_size": 8192},
}
NEMOTRON_NAS = plain(
    "DeciLMForCausalLM",
    "nemotron-nas",
    *(4, 64, 0, 8192),
    num_key_value_heads=None,
    block_configs=[
        {
            "attention": {"n_heads_in_group": 8, "no_op": False, "replace_with_linear": False},
            "ffn": {"ffn_mult": 2.625},
        },
        {
            "attention": {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False},
            "ffn": {"ffn_mult": 1.0},
        },
        {"attention": {"n_heads_in_group": None, "no_op": False, "replace_with_linear": True}, "ffn": {"no_op": True}},
        {
            "attention": {"n_heads_in_group": 16, "no_op": False, "replace_with_linear": False},
            "ffn": {"ffn_mult": 5.25},
        },
    ],
)
FALCON_7B: Config = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "hidden_size": 4544,
    "multi_query": True,
    "new_decoder_architecture": False,
}
CHATGLM3_6B: Config = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "num_layers": 28,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "kv_channels": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 65024,
    "seq_length": 8192,
}

# Each with the bytes of one token in a cache of 16 bits, over all layers and on one GPU.
CACHE_BYTES: dict[str, tuple[Config, int]] = {
    "llama-3.1-8b": (LLAMA_3_1_8B, 131_072),
    "llama-3.3-70b": (plain("LlamaForCausalLM", "llama", 80, 64, 8, 8192), 327_680),
    "qwen2.5-7b": (plain("Qwen2ForCausalLM", "qwen2", 28, 28, 4, 3584), 57_344),
    "qwen3-4b": (plain("Qwen3ForCausalLM", "qwen3", 36, 32, 8, 2560, head_dim=128), 147_456),
    "qwen3-30b-a3b": (plain("Qwen3MoeForCausalLM", "qwen3_moe", 48, 32, 4, 2048, head_dim=128), 98_304),
    "qwen3-next-80b": (QWEN3_NEXT_80B, 24_576),
    "mistral-7b": (plain("MistralForCausalLM", "mistral", 32, 32, 8, 4096, sliding_window=4096), 131_072),
    "mixtral-8x7b": (plain("MixtralForCausalLM", "mixtral", 32, 32, 8, 4096, sliding_window=None), 131_072),
    "gemma-7b": (plain("GemmaForCausalLM", "gemma", 28, 16, 16, 3072, head_dim=256), 458_752),
    "gemma-2-9b": (plain("Gemma2ForCausalLM", "gemma2", 42, 16, 8, 3584, head_dim=256), 344_064),
    "gemma-3-4b": (GEMMA_3_4B, 139_264),
    "phi-3-mini": (plain("Phi3ForCausalLM", "phi3", 32, 32, 32, 3072, sliding_window=2047), 393_216),
    "phi-4": (plain("Phi3ForCausalLM", "phi3", 40, 40, 10, 5120, sliding_window=None), 204_800),
    "deepseek-v2-lite": (DEEPSEEK_V2_LITE, 31_104),
    "deepseek-v3": (DEEPSEEK_V3, 70_272),
    "gpt-oss-20b": (GPT_OSS_20B, 49_152),
    "nemotron-3-nano-30b": (NEMOTRON_NANO_30B, 6_144),
    "nemotron-nas": (NEMOTRON_NAS, 2 * 128 * (8 + 4) * 2),
    "minitron-4b": (plain("NemotronForCausalLM", "nemotron", 32, 24, 8, 3072, head_dim=128), 131_072),
    "command-r-35b": (plain("CohereForCausalLM", "cohere", 40, 64, 64, 8192), 1_310_720),
    "command-r7b": (plain("Cohere2ForCausalLM", "cohere2", 32, 32, 8, 4096, sliding_window=4096), 131_072),
    "falcon-7b": (FALCON_7B, 8_192),
    "falcon-40b": (
        FALCON_7B
        | {"num_hidden_layers": 60, "num_attention_heads": 128, "hidden_size": 8192}
        | {"new_decoder_architecture": True, "num_kv_heads": 8},
        122_880,
    ),
    "chatglm3-6b": (CHATGLM3_6B, 28_672),
    "glm-4-9b-0414": (plain("Glm4ForCausalLM", "glm4", 40, 32, 2, 4096, head_dim=128), 40_960),
    "internlm2-7b": (plain("InternLM2ForCausalLM", "internlm2", 32, 32, 8, 4096), 131_072),
    "llama-4-scout": (LLAMA_4_SCOUT, 196_608),
    "recurrentgemma-2b": (
        plain(
            "RecurrentGemmaForCausalLM", "recurrent_gemma", 26, 10, 1, 2560, head_dim=256, attention_window_size=2048
        ),
        8_192,
    ),
    "mamba2-2.7b": ({"model_type": "mamba2", "num_hidden_layers": 64, "hidden_size": 2560}, 0),
    "gpt2": ({"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768}, 36_864),
}


def text(config: Config) -> bytes:
    return json.dumps(config).encode()
