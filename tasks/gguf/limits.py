"""What serving a GGUF model needs to know before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.gguf.file import GGUFFile, malformed
from tasks.gguf.reader import read_gguf

# llama.cpp keeps keys and values as float16 unless asked otherwise (`cache_type_k`, `cache_type_v`).
CACHE_ELEMENT_BYTES = 2


@dataclass(frozen=True)
class ModelLimits:
    """`context_length` in tokens, as trained; `vocabulary_size` in tokens; bytes are bytes.

    `attention_heads` and `key_value_heads` are those of the layer with most; 0 in a model without attention.
    `cache_bytes_per_token` is the KV cache of one token of one sequence over all layers, in float16: as much as
    llama.cpp allocates for a token of its context, and more than layers with a sliding window need.
    `weight_bytes` is the size of all tensors in the file, which is what loading them takes.
    """

    architecture: str
    context_length: int
    block_count: int
    embedding_length: int
    attention_heads: int
    key_value_heads: int
    vocabulary_size: int
    has_chat_template: bool
    cache_bytes_per_token: int
    weight_bytes: int


def model_limits(path: Path) -> ModelLimits:
    """Read the header of `path` and no tensor.

    Raises StepFailed as `read_gguf` does, and `gguf-malformed` if a key is missing that llama.cpp requires.
    """
    model = read_gguf(path)
    architecture = model.text("general.architecture")
    if not architecture:
        raise malformed(path, "general.architecture is missing")
    blocks = _integer(model, f"{architecture}.block_count")
    embedding = _integer(model, f"{architecture}.embedding_length")
    heads = model.integers(f"{architecture}.attention.head_count") or [0]
    key_value_heads = model.integers(f"{architecture}.attention.head_count_kv") or heads
    # llama.cpp's own default for the two lengths.
    head_length = embedding // max(heads) if max(heads) > 0 else 0
    key_length = _integer(model, f"{architecture}.attention.key_length", head_length)
    value_length = _integer(model, f"{architecture}.attention.value_length", head_length)
    layers_heads = sum(key_value_heads) if len(key_value_heads) > 1 else blocks * key_value_heads[0]
    tokens = model.fields.get("tokenizer.ggml.tokens")
    return ModelLimits(
        architecture=architecture,
        context_length=_integer(model, f"{architecture}.context_length"),
        block_count=blocks,
        embedding_length=embedding,
        attention_heads=max(heads),
        key_value_heads=max(key_value_heads),
        vocabulary_size=tokens.count if tokens else _integer(model, f"{architecture}.vocab_size"),
        has_chat_template=bool(model.text("tokenizer.chat_template")),
        cache_bytes_per_token=layers_heads * (key_length + value_length) * CACHE_ELEMENT_BYTES,
        weight_bytes=model.tensor_bytes,
    )


def _integer(model: GGUFFile, key: str, default: int | None = None) -> int:
    values = model.integers(key)
    if values is None and default is not None:
        return default
    if values is None or len(values) != 1 or values[0] < 0:
        raise malformed(model.path, f"{key} is missing, or not a single count")
    return values[0]
