"""A LoRA adapter as PEFT saves it: which weights it changes, and what it adds to them.

Source: PEFT 0.21, `tuners/lora/layer.py` (get_delta_weight, merge), `tuners/lora/dora.py` and `utils/save_and_load.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.lora.config import CONFIG, WEIGHTS, AdapterConfig, parse_config, unfit
from tasks.lora.patterns import by_pattern
from tasks.lora.tensors import Floats, MappedTensor, Numbers, tensors_of

_PREFIX = "base_model.model."
_DECLARED = ("gate_up_proj", "down_proj")
"""The parameters of experts in the order in which all models of transformers declare them."""


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix of shape [rows, columns]: `scale * b @ a`, of shapes [rows, rank] and [rank, columns].

    A `magnitude` of shape [rows] (DoRA) is the length that each row of the sum then gets.
    """

    a: Numbers
    b: Numbers
    scale: float
    magnitude: Numbers | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def added_to(self, rows: Floats, first: int) -> Floats:
        """Rows of the matrix, from the row `first` on, with their part of the adapter added."""
        part = slice(first, first + len(rows))
        summed: Floats = rows + self.scale * (self.b[part].astype(np.float32) @ self.a.astype(np.float32))
        if self.magnitude is not None:
            lengths = np.linalg.norm(summed, axis=1)
            summed *= (self.magnitude[part].astype(np.float32) / lengths)[:, None]
        return summed

    def reordered(self, order: NDArray[np.intp]) -> LowRank:
        """The same for a matrix whose rows are in another order."""
        magnitude = None if self.magnitude is None else self.magnitude[order]
        return replace(self, b=self.b[order], magnitude=magnitude)


@dataclass(frozen=True)
class Experts:
    """What is added to all experts of a layer: `a` of shape [experts x rank, columns], `b` [rows, rank x experts]. How
    many there are, the model says."""

    a: Numbers
    b: Numbers
    alpha: float
    rslora: bool


class Added(Protocol):
    """What is added to a tensor of the model."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def added_to(self, rows: Floats, first: int) -> Floats: ...


@dataclass(frozen=True)
class Adapter:
    """`added` is by the name of the weight in the model. `replaced` are the tensors that were trained whole.

    `experts` are by the name of the parameter (`….mlp.experts.gate_up_proj`); `stacked` has those that the model keeps
    in one tensor.
    """

    added: Mapping[str, LowRank]
    replaced: Mapping[str, MappedTensor]
    experts: Mapping[str, Experts] = field(default_factory=dict[str, Experts])
    stacked: Mapping[str, Added] = field(default_factory=dict[str, Added])

    @property
    def sums(self) -> Mapping[str, Added]:
        """All that is added, by the name of the tensor."""
        return {**self.added, **self.stacked}


def read_adapter(folder: Path) -> Adapter:
    """The adapter of a snapshot. Raises StepFailed `adapter-unfit` if it cannot be merged.

    Its tensors stay in the file and are mapped.
    """
    config = parse_config((folder / CONFIG).read_bytes())
    modules: dict[str, dict[str, MappedTensor]] = {}
    wrapped: dict[str, dict[int, dict[str, MappedTensor]]] = {}
    replaced: dict[str, MappedTensor] = {}
    for tensor in tensors_of(folder / WEIGHTS):
        if not tensor.name.startswith(_PREFIX):
            raise unfit(f"{tensor.name} belongs to no known weight")
        name = tensor.name.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        adapted = re.fullmatch(r"(.+)\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?", name)
        if adapted and _parameters(config, adapted[1]):
            depth = tensor.name.count(".base_layer.")
            wrapped.setdefault(adapted[1], {}).setdefault(depth, {})[adapted[2]] = tensor
        elif adapted:
            parts = modules.setdefault(adapted[1], {})
            # PEFT wraps a module once for each of its parameters that `target_parameters` names.
            if (other := parts.setdefault(adapted[2], tensor)) is not tensor:
                raise unfit(f"{other.name} and {tensor.name} add to two parameters of {adapted[1]}")
        elif "lora_" in name or "trainable_tokens" in name or not name.endswith((".weight", ".bias")):
            raise unfit(f"{tensor.name} cannot be merged")
        else:
            replaced[name] = tensor
    parameters = {name: parts for module in wrapped for name, parts in _named(config, module, wrapped[module])}
    alphas = by_pattern("alpha_pattern", config.alpha_pattern, [*modules, *parameters])
    added = {
        f"{module}.weight": _low_rank(config, module, parts, alphas.get(module, config.lora_alpha))
        for module, parts in modules.items()
    }
    experts = {
        name: _experts(config, name, parts, alphas.get(name, config.lora_alpha)) for name, parts in parameters.items()
    }
    return Adapter(added, replaced, experts)


def _parameters(config: AdapterConfig, module: str) -> list[str]:
    """The parameters of a module that PEFT wrapped, innermost first. Those called `weight` are not told apart."""
    found = {
        parameter
        for owner, _, parameter in (name.rpartition(".") for name in config.target_parameters or ())
        if parameter != "weight" and f".{module}".endswith(f".{owner}")
    }
    # PEFT wraps them in the order in which the model declares them, the last one outermost.
    return sorted(found, key=lambda name: _DECLARED.index(name) if name in _DECLARED else len(_DECLARED))


def _named(
    config: AdapterConfig, module: str, wrappers: Mapping[int, Mapping[str, MappedTensor]]
) -> Iterator[tuple[str, Mapping[str, MappedTensor]]]:
    names = _parameters(config, module)
    if len(names) != len(wrappers) or (len(names) > 1 and any(name not in _DECLARED for name in names)):
        raise unfit(f"target_parameters name {', '.join(names)} of {module}, and which is which is not known")
    for name, depth in zip(names, sorted(wrappers, reverse=True), strict=True):
        yield f"{module}.{name}", wrappers[depth]


def _experts(config: AdapterConfig, name: str, parts: Mapping[str, MappedTensor], alpha: float) -> Experts:
    if set(parts) != {"lora_A", "lora_B"}:
        raise unfit(f"{name} has the tensors {', '.join(sorted(parts))}")
    a, b = parts["lora_A"].mapped(), parts["lora_B"].mapped()
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
        raise unfit(f"{name} has matrices of {a.shape} and {b.shape}")
    return Experts(a, b, alpha, config.use_rslora)


def _low_rank(config: AdapterConfig, module: str, parts: Mapping[str, MappedTensor], alpha: float) -> LowRank:
    embedding = "lora_embedding_A" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [name for name in names if name not in parts]
    vector = parts.get("lora_magnitude_vector")
    if missing or len(parts) != 2 + (vector is not None) or config.use_dora != (vector is not None):
        raise unfit(f"{module} has the tensors {', '.join(sorted(parts))}")
    a, b = (parts[name].mapped() for name in names)
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] or a.shape[0] != b.shape[1]:
        raise unfit(f"{module} has matrices of {a.shape} and {b.shape}")
    rank = a.shape[0]
    scale = alpha / (sqrt(rank) if config.use_rslora else rank)
    # The weights of an embedding, and of GPT-2's linear layers, are transposed.
    transposed = embedding or config.fan_in_fan_out
    if transposed and vector is not None:
        raise unfit(f"{module} has a magnitude, and its weights are transposed")
    if transposed:
        return LowRank(b.T, a.T, scale)
    magnitude = None if vector is None else vector.mapped().reshape(-1)
    if magnitude is not None and len(magnitude) != b.shape[0]:
        raise unfit(f"{module} has a magnitude of {len(magnitude)} for {b.shape[0]} rows")
    return LowRank(a, b, scale, magnitude)
