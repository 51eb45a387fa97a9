"""An adapter as requests bring it to TensorRT-LLM's C++ backend: the tensors `lora_weights` and `lora_config`.

Source: `examples/hf_lora_convert.py` of 0.9 to 0.16, which makes them, and `loraUtils.cpp` and `loraModule.cpp` of
`cpp/tensorrt_llm/runtime`, which read them. Up to 0.10 the script leaves the scale out, which the engine does not know
either; here it is always in.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from infra.errors import StepFailed
from tasks.lora.adapter import LowRank
from tasks.lora.config import not_by_request, unfit
from tasks.lora.requested import by_layer, read_requested, scaled

MODULES = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_dense",
    "mlp.gate_proj": "mlp_h_to_4h",
    "mlp.down_proj": "mlp_4h_to_h",
    "mlp.up_proj": "mlp_gate",
}
"""TensorRT-LLM's names of the modules that adapters change, in all versions. Fused gate_up_proj and experts are left
out: what the engine makes of their two halves, or of many experts, was read nowhere."""

_IDS = {
    "attn_qkv": 0,
    "attn_q": 1,
    "attn_k": 2,
    "attn_v": 3,
    "attn_dense": 4,
    "mlp_h_to_4h": 5,
    "mlp_4h_to_h": 6,
    "mlp_gate": 7,
}
_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class LoraEngine:
    """An engine with room for adapters: the sizes of its model, and `target_modules` and `max_rank` of its recipe.

    With `whole_heads` its backend takes queries, keys and values for as wide as the hidden state, whatever they are,
    and the feed-forward layers of a divided engine for as wide as a part of them. So do 0.9 to 0.16; it was seen no
    more in later sources.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    dtype: str
    tp_size: int
    target_modules: Collection[str]
    max_rank: int
    whole_heads: bool

    @classmethod
    def of(
        cls, config: bytes | str, target_modules: Collection[str], max_rank: int, *, whole_heads: bool
    ) -> LoraEngine:
        """By the text of the engine's `config.json`."""
        model = json.loads(config)["pretrained_config"]
        heads = model["num_attention_heads"]
        return cls(
            layers=model["num_hidden_layers"],
            hidden=model["hidden_size"],
            intermediate=model["intermediate_size"],
            heads=heads,
            key_value_heads=model.get("num_key_value_heads") or heads,
            head_size=model.get("head_size") or model["hidden_size"] // heads,
            dtype=model["dtype"],
            tp_size=model["mapping"]["tp_size"],
            target_modules=target_modules,
            max_rank=max_rank,
            whole_heads=whole_heads,
        )

    def shape(self, module: str) -> tuple[int, int]:
        """Rows and columns of the matrix of a module of MODULES' values."""
        query, key_value = self.heads * self.head_size, self.key_value_heads * self.head_size
        return {
            "attn_qkv": (query + 2 * key_value, self.hidden),
            "attn_q": (query, self.hidden),
            "attn_k": (key_value, self.hidden),
            "attn_v": (key_value, self.hidden),
            "attn_dense": (self.hidden, query),
            "mlp_h_to_4h": (self.intermediate, self.hidden),
            "mlp_gate": (self.intermediate, self.hidden),
            "mlp_4h_to_h": (self.hidden, self.intermediate),
        }[module]

    def read_as(self, module: str) -> tuple[int, int]:
        """The same as the backend takes it. Raises StepFailed `adapter-unfit` if it would read the wrong numbers."""
        rows, columns = self.shape(module)
        if not self.whole_heads or module == "attn_qkv":
            return rows, columns
        divided = self.tp_size > 1
        if module in ("attn_q", "attn_k", "attn_v"):
            # Fewer rows end in zeros, which a divided engine would give to its last parts.
            if rows > self.hidden or (divided and rows != self.hidden):
                raise self._misread(module)
            return self.hidden, columns
        if (module == "attn_dense" and columns != self.hidden) or (module == "mlp_4h_to_h" and divided):
            raise self._misread(module)
        return rows, columns

    def _misread(self, module: str) -> StepFailed:
        return not_by_request(f"TensorRT-LLM up to 0.16 misreads {module} of this model, over {self.tp_size} GPUs")


@dataclass(frozen=True)
class LoraTensors:
    """`weights` of shape [n, width], in the engine's dtype, bfloat16 as its bits. `config` of shape [n, 3] has the
    module's number, the layer and the rank of each row: its first matrix, then its second one, then zeros."""

    weights: NDArray[np.generic]
    config: NDArray[np.int32]


def lora_tensors(snapshot: Path, engine: LoraEngine) -> LoraTensors:
    """The tensors of the adapter of a snapshot. Raises StepFailed `adapter-unfit` if the engine has no room for it."""
    found = by_layer(read_requested(snapshot))
    rows: list[tuple[int, int, LowRank]] = []
    width = 0
    for (layer, name), low_rank in sorted(found.items()):
        module, rank = _module(name, engine), low_rank.a.shape[0]
        if low_rank.shape != engine.shape(module) or layer >= engine.layers:
            wanted = list(engine.shape(module))
            raise unfit(
                f"{name} of layer {layer} is {list(low_rank.shape)}, the engine has {engine.layers} of {wanted}"
            )
        if rank > engine.max_rank:
            raise unfit(
                f"{name} of layer {layer} has the rank {rank}, and the engine has room for {engine.max_rank}",
                hint="raise recipe.lora.max_rank",
            )
        rows.append((_IDS[module], layer, low_rank))
        width = max(width, rank * sum(engine.read_as(module)))
    dtype = _DTYPES[engine.dtype]
    weights = np.zeros((len(rows), width), dtype)
    for row, (module, layer, low_rank) in zip(weights, rows, strict=True):
        numbers = np.concatenate([low_rank.a.astype(np.float32).reshape(-1), scaled(low_rank).reshape(-1)])
        with np.errstate(over="ignore", invalid="ignore"):
            row[: len(numbers)] = numbers.astype(dtype)
        if not np.isfinite(row.astype(np.float32)).all():
            name = next(name for name, number in _IDS.items() if number == module)
            raise unfit(f"{name} of layer {layer} holds numbers that {engine.dtype} cannot")
    config = np.array([[module, layer, low_rank.a.shape[0]] for module, layer, low_rank in rows], dtype=np.int32)
    return LoraTensors(weights.view(np.uint16) if engine.dtype == "bfloat16" else weights, config)


def _module(name: str, engine: LoraEngine) -> str:
    module = MODULES.get(name)
    if module is None:
        raise not_by_request(f"{name} is none of {', '.join(MODULES)}")
    if module not in engine.target_modules:
        raise unfit(
            f"{name} is {module}, and the engine has room for {', '.join(engine.target_modules)}",
            hint=f"add {module} to recipe.lora.target_modules",
        )
    return module
