"""Adapters to experts (`target_parameters`), merged into the models' forms of them.

`peft_experts/` was written by PEFT 0.21.2 on transformers 5.24.0: of models of one layer with random weights, the
tensors that differ after `merge_and_unload`, before and after, and adapters to experts and queries.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.errors import StepFailed
from tasks.lora.merge import merged
from tests.tasks.lora.small_adapters import save_file
from tests.tasks.lora.test_lora import values

EXPERTS, RANK, HIDDEN, INNER = 3, 2, 8, 5
MODULE = "model.layers.0.mlp.experts"
SHAPES = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
Array = NDArray[Any]
load_file: Any = importlib.import_module("safetensors.numpy").load_file
random = np.random.default_rng(5)


def numbers(*shape: int) -> Array:
    return random.normal(0, 1, shape).astype(np.float32)


def write(folder: Path, tensors: dict[str, Array], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / ("adapter_model.safetensors" if config else "model.safetensors"))
    if config:
        document = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, **config}
        (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def adapter(folder: Path, *parameters: str, **config: Any) -> tuple[Path, dict[str, Array]]:
    """An adapter as PEFT saves it, and what it adds to each expert, by PEFT's own formula."""
    tensors: dict[str, Array] = {}
    added: dict[str, Array] = {}
    for depth, name in enumerate(reversed(parameters)):
        rows, columns = SHAPES[name]
        a, b = numbers(RANK * EXPERTS, columns), numbers(rows, RANK * EXPERTS)
        wrapper = f"base_model.model.{MODULE}" + ".base_layer" * depth
        tensors |= {f"{wrapper}.lora_A.weight": a, f"{wrapper}.lora_B.weight": b}
        # einsum("o r e, e r i -> e o i") of its get_delta_weight.
        first, second = a.reshape(EXPERTS, RANK, columns), b.reshape(rows, RANK, EXPERTS)
        added[name] = np.stack([second[:, :, each] @ first[each] for each in range(EXPERTS)]) * 6 / RANK
    targets = [f"mlp.experts.{name}" for name in parameters]
    return write(folder, tensors, target_parameters=targets, **config), added


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_the_same_as_peft_s_own(architecture: str, tmp_path: Path) -> None:
    folder = Path(__file__).with_name("peft_experts") / architecture
    after = values(merged(folder / "base", folder, tmp_path / "merged"))
    expected = load_file(folder / "merged.safetensors")
    assert after.keys() == expected.keys()
    assert all(np.allclose(after[name], tensor, atol=1e-6) for name, tensor in expected.items())


@pytest.mark.parametrize("parameters", [("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",)])
@pytest.mark.parametrize("transposed", [False, True])
def test_into_one_tensor_of_all_experts(tmp_path: Path, parameters: tuple[str, ...], transposed: bool) -> None:
    tuned, added = adapter(tmp_path / "adapter", *parameters)
    before = {f"{MODULE}.{name}": numbers(EXPERTS, *shape) for name, shape in SHAPES.items()}
    if transposed:
        before = {name: np.ascontiguousarray(tensor.swapaxes(1, 2)) for name, tensor in before.items()}
    after = values(merged(write(tmp_path / "base", before), tuned, tmp_path / "merged"))
    for name, tensor in before.items():
        change = added.get(name.rpartition(".")[2], np.zeros(1))
        expected = tensor + (change.swapaxes(1, 2) if transposed and change.ndim == 3 else change)
        assert np.allclose(after[name], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        (MODULE, ("gate_proj", "up_proj", "down_proj")),
        ("model.layers.0.block_sparse_moe.experts", ("w1", "w3", "w2")),
    ],
)
def test_into_matrices_of_each_expert(tmp_path: Path, place: str, names: tuple[str, ...]) -> None:
    tuned, added = adapter(tmp_path / "adapter", "gate_up_proj", "down_proj")
    shapes = dict(zip(names, ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)), strict=True))
    before = {
        f"{place}.{expert}.{name}.weight": numbers(*shape)
        for expert in range(EXPERTS)
        for name, shape in shapes.items()
    }
    after = values(merged(write(tmp_path / "base", before), tuned, tmp_path / "merged"))
    changes = (added["gate_up_proj"][:, :INNER], added["gate_up_proj"][:, INNER:], added["down_proj"])
    for name, change in zip(names, changes, strict=True):
        for expert in range(EXPERTS):
            own = f"{place}.{expert}.{name}.weight"
            assert np.allclose(after[own], before[own] + change[expert], atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tuned, _ = adapter(tmp_path / "adapter", "gate_up_proj")
    for number, (name, shape, words) in enumerate(
        (
            ("gate_up_proj", (EXPERTS, HIDDEN, HIDDEN), "adds matrices of [10, 8]"),
            ("gate_up_proj", (4, 2 * INNER, HIDDEN), "6 ranks, which 4 experts cannot share"),
            ("other", (EXPERTS, 2 * INNER, HIDDEN), "the model has no"),
        )
    ):
        base = write(tmp_path / f"base-{number}", {f"{MODULE}.{name}": numbers(*shape)})
        with pytest.raises(StepFailed) as caught:
            merged(base, tuned, tmp_path / f"merged-{number}")
        assert caught.value.code == "adapter-unfit" and words in caught.value.message
