"""The stand-in's cache of LoRA adapters: what the real backend takes and refuses, in its words.

Source: `loraUtils.cpp`, `loraModule.cpp` and `loraCache.cpp` of TensorRT-LLM's `cpp/tensorrt_llm/runtime`, 0.9 to 0.16,
and the message of `batch_manager/peftCacheManager.cpp`. Later versions alone look at the largest rank; this one does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_MODULES = (
    *("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"),
    *("cross_attn_qkv", "cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_dense"),
)


class LoraRefused(Exception):
    """A request that the real backend answers with an error."""


class LoraCache:
    """The adapters of one engine by task id, the one that was used last at the end. `room` is in bytes."""

    def __init__(self, version: tuple[int, ...], engine: Mapping[str, Any], room: int) -> None:
        self._model, build = engine["pretrained_config"], engine["build_config"]
        self._enabled = bool(build.get("plugin_config", {}).get("lora_plugin"))
        self._built: Mapping[str, Any] = build.get("lora_config", {})
        self._wide = version < (0, 17)
        self._room = room
        self._cached: OrderedDict[int, bytes] = OrderedDict()

    def of(self, tensors: Mapping[str, Any], types: Mapping[str, str], running: Collection[int]) -> bytes | None:
        """The weights of the adapter that a request names; None if it names none. `running` are ids in use."""
        given = [name for name in ("lora_weights", "lora_config") if name in tensors]
        if "lora_task_id" not in tensors:
            # The real one would answer without the adapter, which a test would not notice.
            if given:
                raise LoraRefused("lora_task_id must be set for LoRA inference")
            return None
        if not self._enabled:
            raise LoraRefused("an adapter for an engine that was built without lora_plugin")
        task = int(tensors["lora_task_id"].item())
        if given:
            self._check(tensors, types)
            if task not in self._cached:
                self._put(task, tensors["lora_weights"].tobytes(), running)
        elif task not in self._cached:
            raise LoraRefused(f"LoRA task {task} not found in cache. Please send LoRA weights with request")
        self._cached.move_to_end(task)
        return self._cached[task]

    def _put(self, task: int, weights: bytes, running: Collection[int]) -> None:
        while sum(map(len, self._cached.values())) + len(weights) > self._room:
            done = next((other for other in self._cached if other not in running), None)
            if done is None:
                raise LoraRefused("Cache is full. There are no done tasks to evict")
            del self._cached[done]
        self._cached[task] = weights

    def _check(self, tensors: Mapping[str, Any], types: Mapping[str, str]) -> None:
        _require(
            {"lora_weights", "lora_config"} <= tensors.keys(),
            "Request for LoRA inference must have both lora_weights and lora_keys",
        )
        weights, keys = tensors["lora_weights"], tensors["lora_config"]
        _require(weights.ndim == 3, "Invalid shape for lora_weights tensor")
        _require(keys.ndim == 3, "Invalid shape for lora_keys tensor")
        _require(len(weights) == len(keys) == 1, "Expected batch dimension to be 1 for each lora request")
        _require(types["lora_config"] == "INT32", "Expected  lora keys to have TYPE_INT32")
        _require(keys.shape[1] == weights.shape[1], "Expected dim1 lora_weights and lora_keys to have the same size")
        _require(keys.shape[2] == 3, "Expected dim2 of lora_keys to have a size of 3")
        wanted = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}[self._model["dtype"]]
        _require(types["lora_weights"] == wanted, "Expected lora weights to be the same data type as base model")
        for row, (module, layer, rank) in zip(weights[0], keys[0].tolist(), strict=True):
            self._check_row(row, module, layer, rank)

    def _check_row(self, row: npt.NDArray[Any], module: int, layer: int, rank: int) -> None:
        layers = self._model["num_hidden_layers"]
        _require(0 <= layer < layers, "Expected layerId to be in the range [0, numModelLayers)")
        _require(rank > 0, "Expected adapterSize to be > 0")
        name = _MODULES[module] if 0 <= module < len(_MODULES) else "INVALID"
        enabled = self._built.get("lora_target_modules") or ()
        _require(name in enabled, f"lora module {name} not enabled for this model")
        first, second = self._sizes(name)
        _require(rank * (first + second) <= len(row), f"lora_weights has to few values for {name}")
        most = self._built.get("max_lora_rank", 0)
        _require(rank <= most, f"Invalid low_rank ({rank}). low_rank must be smaller than mMaxLowRank ({most})")
        # The real one computes with whatever lies there; what is wrong shows in no message.
        _require(bool(np.isfinite(row).all()), f"{name} of layer {layer} holds what is no number")
        _require(bool(row[rank * first : rank * (first + second)].any()), f"{name} of layer {layer} adds nothing")

    def _sizes(self, name: str) -> tuple[int, int]:
        model = self._model
        heads, hidden = model["num_attention_heads"], model["hidden_size"]
        query = heads * model.get("head_size", hidden // heads)
        pair = query // heads * model.get("num_key_value_heads", heads)
        wide = {"attn_q": hidden, "attn_k": hidden, "attn_v": hidden} if self._wide else {}
        rows = {
            "attn_qkv": query + 2 * pair,
            "attn_q": query,
            "attn_k": pair,
            "attn_v": pair,
            "attn_dense": hidden,
            "mlp_h_to_4h": model["intermediate_size"],
            "mlp_gate": model["intermediate_size"],
            "mlp_4h_to_h": hidden,
            **wide,
        }
        return model["intermediate_size"] if name == "mlp_4h_to_h" else hidden, rows[name]


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise LoraRefused(f"[TensorRT-LLM][ERROR] Assertion failed: {text}")
