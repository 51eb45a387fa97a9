"""Weights that are the catalogue's model, tuned: another file, other answers, and still whole sentences."""

from __future__ import annotations

import shutil
from pathlib import Path


def make(original: Path, target: Path, factor: float) -> Path:
    """A copy of a GGUF with the scale of one layer's feed-forward input changed."""
    from gguf import GGUFReader

    shutil.copy(original, target)
    (tensor,) = [each for each in GGUFReader(target, "r+").tensors if each.name == "blk.15.ffn_norm.weight"]
    tensor.data[:] *= factor
    return target
