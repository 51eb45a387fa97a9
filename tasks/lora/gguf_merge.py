"""Merge an adapter into a 16-bit GGUF."""

from __future__ import annotations

from pathlib import Path

from tasks.gguf.reader import read_gguf
from tasks.lora.adapter import read_adapter
from tasks.lora.config import unfit
from tasks.lora.gguf_names import for_gguf, mapped
from tasks.lora.merge import merge_tensor
from tasks.lora.names import short_name

_TRAINED_WHOLE = ("embed_tokens.weight", "lm_head.weight")


def merge_gguf(model: Path, adapter: Path) -> None:
    """Change the GGUF `model` in place. Its tokenizer stays.

    Of tensors that were trained whole, the token embeddings and the output matrix can be merged. Raises StepFailed
    `adapter-unfit` for others, and as `for_gguf` does.
    """
    wanted, file = read_adapter(adapter), read_gguf(model)
    if others := [name for name in wanted.replaced if short_name(name) not in _TRAINED_WHOLE]:
        raise unfit(f"{others[0]} was trained whole, and a GGUF may have it in another form")
    wanted, tensors = for_gguf(wanted, file)
    for name, tensor in tensors.items():
        merge_tensor(wanted, mapped(file, name, tensor))
