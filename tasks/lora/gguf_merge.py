"""Merge of an adapter into a 16-bit GGUF: the same matrices under other names, some of them in another order.

llama.cpp rotates neighbouring numbers where the published models of `llama` rotate the two halves of a head. So the
rows of query and key were reordered when the GGUF was made (`permute` in its `convert_hf_to_gguf.py`).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from numpy.typing import NDArray

from infra.errors import StepFailed
from tasks.engines.gguf_file import GGUFFile, read_gguf
from tasks.lora.adapter import Adapter, read_adapter
from tasks.lora.merge import merge_tensor
from tasks.lora.tensors import Placed, unfit

_REORDERED = ("llama",)
_AS_PUBLISHED = ("gemma", "gemma2", "gemma3", "qwen2", "qwen3")
_TRAINED_WHOLE = ("model.embed_tokens.weight", "lm_head.weight")


def merge_gguf(model: Path, adapter: Path) -> None:
    """Change the GGUF `model` in place. Raises StepFailed `adapter-unfit`, also for architectures that nobody checked.

    Its tokenizer stays. Of tensors that were trained whole it takes the token embeddings and the output matrix.
    """
    wanted, file = read_adapter(adapter), read_gguf(model)
    architecture = file.text("general.architecture") or ""
    if architecture not in _REORDERED + _AS_PUBLISHED:
        raise unfit(
            f"{model.name} is of architecture {architecture!r}, and only {', '.join(_REORDERED + _AS_PUBLISHED)} "
            "are known to be the published matrices"
        )
    if others := [name for name in wanted.replaced if name not in _TRAINED_WHOLE]:
        raise unfit(f"{others[0]} was trained whole, and a GGUF may hold it in another form")
    placed = _placed(file, architecture, wanted)
    for name, tensor in placed.items():
        mine = wanted
        if (
            architecture in _REORDERED
            and name in wanted.added
            and (order := _order(file, architecture, name)) is not None
        ):
            mine = Adapter({name: wanted.added[name].reordered(order)}, {})
        merge_tensor(mine, name, tensor)


def _placed(file: GGUFFile, architecture: str, wanted: Adapter) -> dict[str, Placed]:
    """The tensors that PEFT calls by the names in `wanted`."""
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = file.integers(f"{architecture}.block_count") or [0]
    names = get_tensor_name_map(kind, blocks[0])
    there = {tensor.name: tensor for tensor in file.tensors}
    placed: dict[str, Placed] = {}
    for name in wanted.names():
        tensor = there.get(f"{names.get_name(name.removesuffix('.weight'))}.weight")
        if tensor is None:
            raise unfit(f"{file.path.name} has no {name}")
        # The row length comes first in a GGUF.
        shape = tuple(reversed(tensor.shape[: tensor.dimensions]))
        placed[name] = Placed(file.path, name, tensor.type.name, shape, tensor.offset)
    return placed


def _order(file: GGUFFile, architecture: str, name: str) -> NDArray[np.intp] | None:
    """Which published row each row of this matrix is; None where they lie as published."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.([qk])_proj\.weight", name)
    if found is None:
        return None
    all_heads = file.integers(f"{architecture}.attention.head_count")
    heads = all_heads if found[2] == "q" else file.integers(f"{architecture}.attention.head_count_kv") or all_heads
    tensors = {tensor.name: tensor for tensor in file.tensors}
    rows = tensors[f"blk.{found[1]}.attn_{found[2]}.weight"].shape[1]
    if not heads:
        raise StepFailed(f"{file.path.name} does not say how many heads it has", code="gguf-malformed")
    count = heads[int(found[1])] if len(heads) > 1 else heads[0]
    return np.arange(rows).reshape(count, 2, rows // count // 2).swapaxes(1, 2).reshape(rows)
