"""LoRA adapters as PEFT saves them, with random numbers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

save_file: Any = importlib.import_module("safetensors.numpy").save_file

Shapes = Mapping[str, tuple[int, int]]
"""Rows and columns of each module of a layer, by its name there: `self_attn.q_proj`."""


def write_adapter(
    folder: Path, shapes: Shapes, *, layers: int, seed: int, rank: int = 4, size: float = 1.0, **config: Any
) -> Path:
    """An adapter that changes these modules in every layer, by numbers of about `size`."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (size * random.normal(0.0, 1.0, (rows, columns)) / np.sqrt(columns)).astype(np.float32)

    tensors: dict[str, NDArray[np.float32]] = {}
    for layer in range(layers):
        for module, (rows, columns) in shapes.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = matrix(rank, columns)
            tensors[f"{name}.lora_B.weight"] = matrix(rows, rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    document = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": _last(shapes), **config}
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def _last(shapes: Shapes) -> list[str]:
    return [name.rpartition(".")[2] for name in shapes]


def nearest(answer: str, answers: Sequence[str]) -> str:
    """The one that begins as `answer` does for longest.

    A batch of another size rounds otherwise, and llama.cpp goes on in another way where two tokens are as good.
    """
    return max(
        answers,
        key=lambda each: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(each, answer, strict=False))),
    )
