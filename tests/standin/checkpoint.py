"""A TensorRT-LLM checkpoint: `config.json` and one `rankN.safetensors` for each rank, of a Llama or its like."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.standin import failures, layers, llama
from tests.standin.context import Context
from tests.standin.facts import keys
from tests.standin.llama import Llama
from tests.standin.safetensors import ITEM_BYTES, Tensor, cast, part, stack, write

_QUANTIZED = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")


@dataclass(frozen=True)
class Mapping:
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    experts: int = 1
    """Parts of `tensor` that hold whole experts. In a model without experts only its config shows the number."""

    @property
    def files(self) -> int:
        """The number of rank files. Context parallelism neither splits nor repeats weights."""
        return self.tensor * self.pipeline

    @property
    def world(self) -> int:
        return self.files * self.context


@dataclass(frozen=True)
class Quantization:
    algorithm: str | None = None
    key_value_cache: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    """Further keys of the section `quantization`."""


def config(
    hugging_face: dict[str, Any],
    context: Context,
    dtype: str,
    mapping: Mapping,
    quantization: Quantization,
    options: dict[str, Any],
) -> dict[str, Any]:
    """`config.json` with the keys that this version writes. `options` are the keys that flags set."""
    values: dict[str, Any] = {
        "architecture": hugging_face["architectures"][0],
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": hugging_face["vocab_size"],
        "hidden_size": hugging_face["hidden_size"],
        "num_hidden_layers": hugging_face["num_hidden_layers"],
        "num_attention_heads": hugging_face["num_attention_heads"],
        "num_key_value_heads": llama.key_value_heads(hugging_face),
        "intermediate_size": hugging_face["intermediate_size"],
        "head_size": llama.head_size(hugging_face),
        "hidden_act": hugging_face.get("hidden_act", "silu"),
        "norm_epsilon": hugging_face["rms_norm_eps"],
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": hugging_face["max_position_embeddings"],
        "rotary_base": hugging_face.get("rope_theta", 10000.0),
        "rotary_scaling": hugging_face.get("rope_scaling"),
        "rotary_embedding_dim": llama.head_size(hugging_face),
        "attn_bias": bool(hugging_face.get("attention_bias", False)),
        "kv_dtype": dtype,
        "mapping": _mapping(context, mapping),
        "quantization": _quantization(context, quantization),
        "moe": keys("moe", context.version) | _experts(hugging_face),
    }
    if not context.since("0.9"):
        # The script of 0.8 reads neither of these keys from Hugging Face's config: only its flags set them.
        values |= {"rotary_base": 10000.0, "rotary_scaling": None}
    known = keys("checkpoint", context.version)
    found = known | {key: value for key, value in (values | options).items() if key in known}
    return found | _of_family(hugging_face, context)


def _experts(hugging_face: dict[str, Any]) -> dict[str, Any]:
    count = layers.experts(hugging_face, hugging_face["architectures"][0])
    return {"num_experts": count, "top_k": hugging_face["num_experts_per_tok"]} if count else {}


def _of_family(hugging_face: dict[str, Any], context: Context) -> dict[str, Any]:
    """What the configs of some families have beside those of Llama."""
    architecture = hugging_face["architectures"][0]
    if architecture.startswith("Qwen"):
        # Up to 0.11 the converter names its own class.
        named = {} if context.since("0.12") else {"architecture": "QWenForCausalLM"}
        return {**named, "qwen_type": hugging_face["model_type"], "seq_length": 8192}
    if architecture.startswith("Gemma"):
        names = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
        return {name: hugging_face[name] for name in names if name in hugging_face}
    if layers.experts(hugging_face, architecture) and not context.since("0.11"):
        return {"moe_num_experts": hugging_face["num_local_experts"], "moe_top_k": hugging_face["num_experts_per_tok"]}
    return {}


def _mapping(context: Context, mapping: Mapping) -> dict[str, Any]:
    values = {
        "world_size": mapping.world,
        "gpus_per_node": 8,
        "cp_size": mapping.context,
        "tp_size": mapping.tensor,
        "pp_size": mapping.pipeline,
        "moe_tp_size": mapping.tensor // mapping.experts,
        "moe_ep_size": mapping.experts,
    }
    known = keys("mapping", context.version)
    return known | {key: value for key, value in values.items() if key in known}


def _quantization(context: Context, quantization: Quantization) -> dict[str, Any]:
    known = keys("quantization", context.version)
    values = {"quant_algo": quantization.algorithm, "kv_cache_quant_algo": quantization.key_value_cache}
    return known | {key: value for key, value in values.items() if key in known} | dict(quantization.settings)


def rank_tensors(model: Llama, rank: int, mapping: Mapping, dtype: str, algorithm: str | None) -> dict[str, Tensor]:
    """The file of `rank`: this rank's layers, numbered from 0, and its share of each matrix."""
    stage, share = divmod(rank, mapping.tensor)
    count = model.config["num_hidden_layers"] // mapping.pipeline
    plain = {name: cast(tensor, llama.tensor_dtype(dtype)) for name, tensor in model.tensors.items()}
    embedding = plain["model.embed_tokens.weight"]
    tensors: dict[str, Tensor] = {}
    if stage == 0:
        tensors["transformer.vocab_embedding.weight"] = embedding
    for layer in range(count):
        theirs, mine = f"model.layers.{stage * count + layer}.", f"transformer.layers.{layer}."
        for kind in ("weight", "bias"):
            if f"{theirs}self_attn.q_proj.{kind}" in plain:
                tensors[f"{mine}attention.qkv.{kind}"] = _attention(model.config, plain, theirs, kind, share, mapping)
        tensors[mine + "attention.dense.weight"] = part(
            plain[theirs + "self_attn.o_proj.weight"], 1, share, mapping.tensor
        )
        tensors |= _feed_forward(plain, theirs, mine, share, mapping)
        for name in plain:
            if name.startswith(theirs) and "norm" in name:
                tensors[mine + llama.ours(name.removeprefix(theirs))] = plain[name]
    if stage == mapping.pipeline - 1:
        tensors["transformer.ln_f.weight"] = plain["model.norm.weight"]
        tensors["lm_head.weight"] = part(plain.get("lm_head.weight", embedding), 0, share, mapping.tensor)
    return _quantized(tensors, algorithm) if algorithm else tensors


def _feed_forward(plain: dict[str, Tensor], theirs: str, mine: str, share: int, mapping: Mapping) -> dict[str, Tensor]:
    if f"{theirs}block_sparse_moe.gate.weight" not in plain:
        halves = {"mlp.fc": ("gate_proj", 0), "mlp.gate": ("up_proj", 0), "mlp.proj": ("down_proj", 1)}
        return {
            f"{mine}{name}.weight": part(plain[f"{theirs}mlp.{stored}.weight"], dimension, share, mapping.tensor)
            for name, (stored, dimension) in halves.items()
        }
    router = plain[f"{theirs}block_sparse_moe.gate.weight"]
    held = router.shape[0] // mapping.experts
    first, (part_of, parts) = (
        share % mapping.experts * held,
        (share // mapping.experts, mapping.tensor // mapping.experts),
    )

    def matrix(expert: int, name: str, dimension: int) -> Tensor:
        return part(plain[f"{theirs}block_sparse_moe.experts.{expert}.{name}.weight"], dimension, part_of, parts)

    mine_alone = range(first, first + held)
    # Gate and up projection are one matrix, as TensorRT-LLM's kernels take them.
    both = [stack(matrix(expert, "w3", 0), matrix(expert, "w1", 0)) for expert in mine_alone]
    return {
        f"{mine}mlp.router.weight": router,
        f"{mine}mlp.fc.weight": _pile(both),
        f"{mine}mlp.proj.weight": _pile([matrix(expert, "w2", 1) for expert in mine_alone]),
    }


def _pile(tensors: list[Tensor]) -> Tensor:
    return Tensor(tensors[0].dtype, (len(tensors), *tensors[0].shape), b"".join(tensor.data for tensor in tensors))


def _attention(
    config: dict[str, Any], plain: dict[str, Tensor], prefix: str, kind: str, share: int, mapping: Mapping
) -> Tensor:
    pairs, parts = llama.key_value_heads(config), mapping.tensor
    # If there are more ranks than heads of keys and values, several ranks hold the same head.
    pair_parts, pair_share = (parts, share) if pairs >= parts else (pairs, share * pairs // parts)
    return stack(
        part(plain[f"{prefix}self_attn.q_proj.{kind}"], 0, share, parts),
        part(plain[f"{prefix}self_attn.k_proj.{kind}"], 0, pair_share, pair_parts),
        part(plain[f"{prefix}self_attn.v_proj.{kind}"], 0, pair_share, pair_parts),
    )


def suffixes(algorithm: str | None) -> tuple[str, ...]:
    """The tensors that a quantized matrix has beside `weight`."""
    if algorithm in (None, "NO_QUANT"):
        return ()
    if algorithm in ("FP8", "W4A8_AWQ", "NVFP4"):
        return ("activation_scaling_factor", "weights_scaling_factor")
    if algorithm == "W4A16_AWQ":
        return ("prequant_scaling_factor", "weights_scaling_factor")
    if algorithm == "W4A16_GPTQ" or algorithm == "W8A16_GPTQ":
        return ("weights_scaling_factor", "zero")
    return ("per_channel_scale",)


def _quantized(tensors: dict[str, Tensor], algorithm: str) -> dict[str, Tensor]:
    """Bytes made from the digest of the matrix. Nothing computes with them, and equal input gives equal files."""
    dtype = "F8_E4M3" if algorithm.startswith("FP8") else "I8"
    halved = algorithm.startswith(("W4", "NVFP4"))
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matrix = name.removesuffix(".weight")
        if not matrix.endswith(_QUANTIZED):
            result[name] = tensor
            continue
        *rows, columns = tensor.shape
        shape = (*rows, columns // 2 if halved else columns)
        result[name] = Tensor(dtype, shape, _bytes(tensor.data, math.prod(shape) * ITEM_BYTES[dtype]))
        scales = math.prod(rows)
        for suffix in suffixes(algorithm):
            scale = _bytes(suffix.encode() + tensor.data, scales * 4)
            result[f"{matrix}.{suffix}"] = Tensor("F32", tuple(rows), scale)
    return result


def _bytes(seed: bytes, count: int) -> bytes:
    return hashlib.shake_128(seed).digest(count)


def save_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=4))


def save_rank(folder: Path, rank: int, tensors: dict[str, Tensor], tool: str, last: bool) -> None:
    path = folder / f"rank{rank}.safetensors"
    if last and failures.chosen(tool) == "empty-rank":
        path.write_bytes(b"")
    else:
        write(path, tensors)
