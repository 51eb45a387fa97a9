"""The memory of a checkpoint in PyTorch: what is known of it before it is loaded, and what a release of it takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from tasks.weights.facts import WeightsFacts

_DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED: Mapping[str, str] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types of tensors as safetensors calls them."""

CONTEXT_BYTES = 752 << 20
"""CUDA's context, the kernels of PyTorch and the workspace of cuBLAS on a GPU: what an H200 held beyond weights and
cache, of a model of 135 million weights and of one of 3 billion (docs/measured-on-a-gpu.md)."""

HOST_BYTES = 640 << 20
"""The process itself with PyTorch, transformers and PEFT imported takes 370 MiB (PyTorch 2.13 for the CPU, transformers
5.24); the rest is for what it grows by."""

ACTIVATIONS = 16
"""Vectors of the hidden size that a pass holds at once for each token: the widest part of a layer, its inner vectors,
are up to four each, and three of these (gate, up and their product) stand beside the residuals and the keys."""


@dataclass(frozen=True)
class TorchLimits:
    """What of a checkpoint its memory follows from.

    `weights` counts numbers, `weight_file_bytes` are those of their files. `cache_numbers` are what one token has in
    the cache over all layers, keys and values; None where that is not understood. `dtype` is that of the checkpoint.
    """

    weights: int
    weight_file_bytes: int
    cache_numbers: int | None
    dtype: str
    hidden_size: int
    vocabulary: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes) -> TorchLimits:
        return cls(**json.loads(text))

    @classmethod
    def of(cls, folder: Path, facts: WeightsFacts) -> TorchLimits:
        """Those of the checkpoint in `folder`, whose facts are known."""
        from tasks.lora.tensors import tensors_of  # numpy, which no plan needs

        files = [folder / name for name in facts.files]
        tensors = [tensor for file in files for tensor in tensors_of(file)]
        return cls(
            weights=sum(prod(tensor.shape) for tensor in tensors),
            weight_file_bytes=sum(file.stat().st_size for file in files),
            cache_numbers=cache_numbers(facts),
            dtype=facts.dtype or _stored(tensor.dtype for tensor in tensors),
            hidden_size=facts.hidden_size or 0,
            vocabulary=facts.vocabulary or 0,
        )

    @classmethod
    def planned(cls, facts: WeightsFacts) -> TorchLimits:
        """Those of weights that were not fetched, by the bytes of their files. Numbers of an unknown type are float32,
        as `dtype_bytes` has it."""
        return cls(
            weights=(facts.bytes or 0) // dtype_bytes("auto", facts),
            weight_file_bytes=facts.bytes or 0,
            cache_numbers=cache_numbers(facts),
            dtype=facts.dtype or "float32",
            hidden_size=facts.hidden_size or 0,
            vocabulary=facts.vocabulary or 0,
        )

    def cache_bytes_per_token(self, dtype: str) -> int | None:
        """In a cache of `dtype`, of which `auto` is the checkpoint's own."""
        return None if self.cache_numbers is None else self.cache_numbers * self._bytes_of(dtype)

    def memory_bytes(self, dtype: str, *, cache_bytes: int, prompt_tokens: int, on_gpu: bool) -> int:
        """All that a loaded release takes: weights, the cache of all slots, the longest pass, and the process."""
        from tasks.serving.torch_model import SCORED_AT_ONCE  # numpy too

        number = self._bytes_of(dtype)
        scores = SCORED_AT_ONCE * self.vocabulary * (4 + number)
        longest = prompt_tokens * self.hidden_size * ACTIVATIONS * number + scores
        return self.weights * number + cache_bytes + longest + (CONTEXT_BYTES if on_gpu else HOST_BYTES)

    def _bytes_of(self, dtype: str) -> int:
        return _DTYPE_BYTES[self.dtype if dtype == "auto" else dtype]


def cache_numbers(facts: WeightsFacts) -> int | None:
    """What one token has in transformers' cache over all layers. None where that is not understood.

    transformers keeps all tokens of layers with a window too, where there is room for them. And of latent attention it
    keeps each head's keys and values, not the one vector that they are made of.
    """
    layers = [layer for layer in facts.cache or () if layer is not None]
    if facts.cache is None or any(layer.numbers != 2 * (facts.head_size or 0) for layer in layers):
        return None
    return sum(layer.heads * layer.numbers for layer in layers)


def is_known_dtype(dtype: str) -> bool:
    """Whether numbers of this type, as `config.json` names it, can be computed with. Empty is that of the tensors."""
    return not dtype or dtype in _DTYPE_BYTES


def dtype_bytes(dtype: str, facts: WeightsFacts) -> int:
    """Bytes of a number in a recipe's `dtype`; of `auto` before the tensors are seen, 4 at most."""
    return _DTYPE_BYTES[(facts.dtype or "float32") if dtype == "auto" else dtype]


def _stored(types: Iterable[str]) -> str:
    """As transformers decides where `config.json` does not say: that of the first tensor of floating point."""
    return next((_STORED[each] for each in types if each in _STORED), "float32")
