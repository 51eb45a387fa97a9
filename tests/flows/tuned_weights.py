"""Weights that are the catalogue's model, tuned: another file, other answers, and still whole sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def make(original: Path, target: Path, factor: float) -> Path:
    """A copy of a GGUF with the scale of one layer's feed-forward input changed."""
    from gguf import GGUFReader

    shutil.copy(original, target)
    (tensor,) = [each for each in GGUFReader(target, "r+").tensors if each.name == "blk.15.ffn_norm.weight"]
    tensor.data[:] *= factor
    return target


def make_adapter(folder: Path) -> dict[str, Path]:
    """A LoRA adapter to SmolLM2-135M as PEFT saves it, to queries and to one feed-forward layer; its files by name."""
    import numpy as np
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    random = np.random.default_rng(7)
    shapes = {"self_attn.q_proj": (576, 576), "mlp.down_proj": (576, 1536)}
    tensors = {
        f"base_model.model.model.layers.15.{module}.lora_{side}.weight": random.normal(0, 0.3, shape).astype("float32")
        for module, (rows, columns) in shapes.items()
        for side, shape in (("A", (4, columns)), ("B", (rows, 4)))
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": [*shapes], "task_type": "CAUSAL_LM"}
    made = {name: folder / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    made["adapter_config.json"].write_text(json.dumps(config))
    save_file(tensors, made["adapter_model.safetensors"])
    return made
