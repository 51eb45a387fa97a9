"""A tiny Llama in Hugging Face form: real files for real readers, with the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from tests.standin import gptq, llama, safetensors
from tests.standin.safetensors import Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 0,
}

CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"

_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"
_WORDS = ("the", "and", "count", "to", "nine", "in", "French", "how", "do", "I", "one", "two", "three", "un", "deux")


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
"""`quantization_config` of weights that AutoGPTQ has quantized."""


def make(folder: Path, *, shards: int = 2, seed: int | str = 0, **changes: Any) -> Path:
    """Write a Llama to `folder`. `changes` replace values of its config; another `seed` gives other weights.

    With `quantization_config=GPTQ` its matrices are quantized as AutoGPTQ leaves them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_file()
    config = CONFIG | {"vocab_size": len(tokenizer["model"]["vocab"])} | changes
    for name, content in (
        ("config.json", config),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "max_length": 2048}),
        ("tokenizer.json", tokenizer),
        (
            "tokenizer_config.json",
            {
                "bos_token": _BEGIN,
                "eos_token": _END,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": CHAT_TEMPLATE,
            },
        ),
    ):
        (folder / name).write_text(json.dumps(content, indent=2))
    _write_weights(folder, config, shards, seed)
    return folder


def _write_weights(folder: Path, config: dict[str, Any], shards: int, seed: int | str) -> None:
    dtype = llama.tensor_dtype(config["torch_dtype"])
    stored = gptq.stored_names if config.get("quantization_config") else llama.stored_names
    tensors = {name: _tensor(f"{seed} {name}", shape, kind or dtype) for name, shape, kind in stored(config)}
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        names = list(tensors)[number * len(tensors) // shards : (number + 1) * len(tensors) // shards]
        safetensors.write(folder / file, {name: tensors[name] for name in names})
        index |= dict.fromkeys(names, file)
    if shards > 1:
        size = sum(len(tensor.data) for tensor in tensors.values())
        content = {"metadata": {"total_size": size}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))


def _tensor(seed: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Numbers between -0.02 and 0.02."""
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    if dtype == "I32":
        return Tensor(dtype, shape, hashlib.shake_128(seed.encode()).digest(4 * count))
    digest = hashlib.shake_128(seed.encode()).digest(2 * count)
    numbers = struct.pack(
        f"<{count}f", *((pair - 32768) * 0.02 / 32768 for (pair,) in struct.iter_unpack("<H", digest))
    )
    return safetensors.cast(Tensor("F32", shape, numbers), dtype)


def tokenizer_file() -> dict[str, Any]:
    """A byte-level BPE: every byte, and the merges that make a few words, each with a space before it."""
    vocabulary = {_BEGIN: 0, _END: 1} | {letter: number + 2 for number, letter in enumerate(_letters())}
    merges: list[str] = []
    for word in _WORDS:
        made = "\u0120"
        for letter in word:
            if (pair := f"{made} {letter}") not in merges:
                merges.append(pair)
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 0, "content": _BEGIN} | special, {"id": 1, "content": _END} | special],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself, or the next from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
