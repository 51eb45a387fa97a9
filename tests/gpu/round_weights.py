"""Round the matrices of a checkpoint to FP8, and leave them in its own type.

    python -m tests.gpu.round_weights CHECKPOINT SCALES

SCALES is a checkpoint of the same weights that ModelOpt has quantized to FP8, whose matrices are taken, or empty: then
the largest weight of each matrix of a layer becomes the largest number of FP8.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from tests.gpu.logits import LARGEST, matrix, tensors_of


def main(checkpoint: Path, scales: str) -> None:
    torch: Any = importlib.import_module("torch")
    safetensors: Any = importlib.import_module("safetensors.torch")
    quantized: dict[str, Any] = tensors_of(Path(scales)) if scales else {}
    rounded = 0
    for file in sorted(checkpoint.glob("*.safetensors")):
        tensors: dict[str, Any] = safetensors.load_file(file)
        for name, each in tensors.items():
            if not name.endswith("_proj.weight"):
                continue
            values = matrix(quantized, name.removesuffix(".weight")) if scales else _nearest(torch, each.float())
            tensors[name] = values.to(each.dtype).contiguous()
            rounded += 1
        # The file may be another artifact's too: it is replaced, and never written into.
        made = file.with_suffix(".rounded")
        safetensors.save_file(tensors, made, metadata={"format": "pt"})
        made.replace(file)
    assert rounded, "there is no matrix of a layer"


def _nearest(torch: Any, weights: Any) -> Any:
    scale = weights.abs().max() / LARGEST
    return (weights / scale).to(torch.float8_e4m3fn).float() * scale


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
