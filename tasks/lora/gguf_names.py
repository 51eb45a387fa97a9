"""What an adapter adds to a GGUF, which has the published matrices under other names, and some in another order.

The published models of `llama` rotate the two halves of a head, and llama.cpp rotates neighbouring numbers. So the rows
of query and key were reordered when the GGUF was made (`permute` in llama.cpp's `convert_hf_to_gguf.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map

from tasks.gguf.file import GGUFFile, Tensor, malformed
from tasks.lora.adapter import Adapter, LowRank
from tasks.lora.config import unfit
from tasks.lora.merge import fitting
from tasks.lora.names import short_name
from tasks.lora.tensors import MappedTensor

_REORDERED = ("llama",)
_AS_PUBLISHED = ("gemma", "gemma2", "gemma3", "qwen2", "qwen3")


def for_gguf(adapter: Adapter, file: GGUFFile) -> tuple[Adapter, Mapping[str, Tensor]]:
    """The adapter with its rows in the order of the file, and the tensors of the file that it changes, by its names.

    Raises StepFailed `adapter-unfit` if it names a tensor that the file lacks, or has other shapes, and for an
    architecture that was not checked.
    """
    architecture = file.text("general.architecture") or ""
    if architecture not in _REORDERED + _AS_PUBLISHED:
        raise unfit(
            f"{file.path.name} has the architecture {architecture!r}, and only "
            f"{', '.join(_REORDERED + _AS_PUBLISHED)} are known to have the published matrices"
        )
    if adapter.experts:
        raise unfit(f"{next(iter(adapter.experts))} is of experts, which a GGUF has in another form")
    tensors = _changed(file, architecture, adapter)
    fitting(adapter, (mapped(file, name, tensor) for name, tensor in tensors.items()))
    if architecture in _REORDERED:
        added = {name: _reordered(file, name, low_rank) for name, low_rank in adapter.added.items()}
        adapter = replace(adapter, added=added)
    return adapter, tensors


def mapped(file: GGUFFile, name: str, tensor: Tensor) -> MappedTensor:
    """A tensor of the file under the adapter's name for it."""
    # A GGUF has the row length first.
    shape = tuple(reversed(tensor.shape[: tensor.dimensions]))
    return MappedTensor(file.path, name, tensor.type.name, shape, tensor.offset)


def _changed(file: GGUFFile, architecture: str, wanted: Adapter) -> Mapping[str, Tensor]:
    """Each tensor is given once. Of two names for one tensor, the second finds none, as if the model had none."""
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = file.integers(f"{architecture}.block_count") or [0]
    names = get_tensor_name_map(kind, blocks[0])
    existing = {tensor.name: tensor for tensor in file.tensors}
    found: dict[str, Tensor] = {}
    for name in sorted({*wanted.added, *wanted.replaced}):
        module = short_name(name).removesuffix(".weight")
        # llama.cpp knows most models by their names with `model.`, and `lm_head` without.
        own = names.get_name(f"model.{module}") or names.get_name(module)
        if (tensor := existing.pop(f"{own}.weight", None)) is not None:
            found[name] = tensor
    return found


def _reordered(file: GGUFFile, name: str, low_rank: LowRank) -> LowRank:
    """What is added to a matrix: of a query or key with its rows in llama.cpp's order, of any other unchanged."""
    found = re.fullmatch(r"layers\.(\d+)\.self_attn\.([qk])_proj\.weight", short_name(name))
    if found is None:
        return low_rank
    all_heads = file.integers("llama.attention.head_count")
    heads = all_heads if found[2] == "q" else file.integers("llama.attention.head_count_kv") or all_heads
    rows, layer = low_rank.shape[0], int(found[1])
    count = 0 if not heads else heads[0] if len(heads) == 1 else heads[layer] if layer < len(heads) else 0
    if count < 1 or rows % (2 * count):
        raise malformed(file.path, f"the number of heads of {name} is missing, or does not divide its rows")
    return low_rank.reordered(np.arange(rows).reshape(count, 2, rows // count // 2).swapaxes(1, 2).reshape(rows))
