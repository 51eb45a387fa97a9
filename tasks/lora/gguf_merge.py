"""Merge of an adapter into a 16-bit GGUF: the same matrices under other names, some of them in another order.

llama.cpp rotates neighbouring numbers where the published models of `llama` rotate the two halves of a head. So the
rows of query and key were reordered when the GGUF was made (`permute` in its `convert_hf_to_gguf.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf.constants import MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map

from tasks.gguf.file import GGUFFile, malformed
from tasks.gguf.reader import read_gguf
from tasks.lora.adapter import Adapter, LowRank, read_adapter
from tasks.lora.merge import fitting, merge_tensor
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
    concerned = fitting(wanted, _placed(file, architecture, wanted))
    if architecture in _REORDERED:
        wanted = replace(wanted, added={name: _reordered(file, name, each) for name, each in wanted.added.items()})
    for tensor in concerned:
        merge_tensor(wanted, tensor)


def _placed(file: GGUFFile, architecture: str, wanted: Adapter) -> Iterator[Placed]:
    """The tensors that PEFT calls by the names in `wanted`, as far as there are any."""
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = file.integers(f"{architecture}.block_count") or [0]
    names = get_tensor_name_map(kind, blocks[0])
    there = {tensor.name: tensor for tensor in file.tensors}
    for name in {*wanted.added, *wanted.replaced}:
        tensor = there.get(f"{names.get_name(name.removesuffix('.weight'))}.weight")
        if tensor is not None:
            # The row length comes first in a GGUF.
            shape = tuple(reversed(tensor.shape[: tensor.dimensions]))
            yield Placed(file.path, name, tensor.type.name, shape, tensor.offset)


def _reordered(file: GGUFFile, name: str, low_rank: LowRank) -> LowRank:
    """What is added to a query or key, with its rows as llama.cpp has them; anything else as it is."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.([qk])_proj\.weight", name)
    if found is None:
        return low_rank
    all_heads = file.integers("llama.attention.head_count")
    heads = all_heads if found[2] == "q" else file.integers("llama.attention.head_count_kv") or all_heads
    rows, layer = low_rank.shape[0], int(found[1])
    count = 0 if not heads else heads[0] if len(heads) == 1 else heads[layer] if layer < len(heads) else 0
    if count < 1 or rows % (2 * count):
        raise malformed(file.path, f"it does not say how many heads {name} has")
    return low_rank.reordered(np.arange(rows).reshape(count, 2, rows // count // 2).swapaxes(1, 2).reshape(rows))
