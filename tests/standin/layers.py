"""The tensors of a layer, architecture by architecture: as Hugging Face has them, and as TensorRT-LLM names them.

Only families that are alike are here: Llama, Mistral, Mixtral, Qwen 2 and 3, Gemma 1 to 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FAMILIES = {
    "llama": ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "InternLMForCausalLM"),
    "qwen": ("Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    "gemma": ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
}
"""By converter: the architectures whose weights the stand-in reads."""

# The first version whose builder takes an architecture: MODEL_MAP of tensorrt_llm/models.
BUILT_SINCE = {
    **dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "InternLMForCausalLM"), "0.8.0"),
    **dict.fromkeys(("QWenForCausalLM", "GemmaForCausalLM"), "0.9.0"),
    "MedusaForCausalLM": "0.8.0",
    "EagleForCausalLM": "0.15.0",
    "Qwen2ForCausalLM": "0.12.0",
    "Gemma2ForCausalLM": "0.13.0",
    "Gemma3ForCausalLM": "0.19.0",
    "Qwen3ForCausalLM": "1.0.0",
}

_BIASED = ("Qwen2ForCausalLM", "QWenForCausalLM")
_NORMED_HEADS = ("Qwen3ForCausalLM", "Gemma3ForCausalLM")
_FOUR_NORMS = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")


def experts(config: dict[str, Any], architecture: str) -> int:
    """The experts of each layer; 0 for a dense model. `config` is Hugging Face's or a checkpoint's."""
    if architecture != "MixtralForCausalLM":
        return 0
    moe: dict[str, Any] = config.get("moe") or {}
    return config.get("num_local_experts") or config.get("moe_num_experts") or moe["num_experts"]


def matrices(config: dict[str, Any], architecture: str) -> tuple[str, ...]:
    """The matrices of a layer of a checkpoint, which are quantized."""
    gate = () if experts(config, architecture) else ("mlp.gate",)
    return ("attention.qkv", "attention.dense", "mlp.fc", *gate, "mlp.proj")


def others(config: dict[str, Any], architecture: str) -> tuple[str, ...]:
    """The other tensors of a layer of a checkpoint."""
    more: tuple[str, ...] = ("input_layernorm.weight", "post_layernorm.weight")
    if architecture in _BIASED:
        more += ("attention.qkv.bias",)
    if architecture in _NORMED_HEADS:
        more += ("attention.q_layernorm.weight", "attention.k_layernorm.weight")
    if architecture in _FOUR_NORMS:
        more += ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
    return (*more, "mlp.router.weight") if experts(config, architecture) else more


def stored(config: dict[str, Any], architecture: str, sizes: tuple[int, int, int]) -> Iterator[tuple[str, Any]]:
    """Hugging Face's tensors of a layer, each with its shape. `sizes`: of all queries, of all keys, of a head."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, pairs, head = sizes
    yield "input_layernorm.weight", (hidden,)
    for name, size in (("q", queries), ("k", pairs), ("v", pairs)):
        yield f"self_attn.{name}_proj.weight", (size, hidden)
        if architecture in _BIASED:
            yield f"self_attn.{name}_proj.bias", (size,)
    if architecture in _NORMED_HEADS:
        yield "self_attn.q_norm.weight", (head,)
        yield "self_attn.k_norm.weight", (head,)
    yield "self_attn.o_proj.weight", (hidden, queries)
    yield "post_attention_layernorm.weight", (hidden,)
    if architecture in _FOUR_NORMS:
        yield "pre_feedforward_layernorm.weight", (hidden,)
        yield "post_feedforward_layernorm.weight", (hidden,)
    if count := experts(config, architecture):
        yield "block_sparse_moe.gate.weight", (count, hidden)
        for expert in range(count):
            yield f"block_sparse_moe.experts.{expert}.w1.weight", (inner, hidden)
            yield f"block_sparse_moe.experts.{expert}.w2.weight", (hidden, inner)
            yield f"block_sparse_moe.experts.{expert}.w3.weight", (inner, hidden)
    else:
        yield "mlp.gate_proj.weight", (inner, hidden)
        yield "mlp.up_proj.weight", (inner, hidden)
        yield "mlp.down_proj.weight", (hidden, inner)
