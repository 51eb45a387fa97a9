"""What serving has to know of a GGUF model, read from its header."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFWriter

from infra.errors import StepFailed
from tasks.gguf.limits import model_limits
from tests.tasks.gguf import small_models


def test_limits_of_a_small_model(tmp_path: Path) -> None:
    limits = model_limits(small_models.checkpoint(tmp_path))
    assert (limits.architecture, limits.context_length, limits.block_count) == ("llama", 128, 2)
    assert (limits.attention_heads, limits.key_value_heads, limits.vocabulary_size) == (4, 2, 4)
    assert limits.has_chat_template
    # 2 layers, 2 heads, a key and a value of 64 / 4 numbers, 2 bytes each.
    assert limits.cache_bytes_per_token == 2 * 2 * (16 + 16) * 2


def test_limits_count_heads_layer_by_layer(tmp_path: Path) -> None:
    source = tmp_path / "layers.gguf"
    writer = GGUFWriter(source, "deci")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_head_count([4, 0, 4])
    writer.add_head_count_kv([4, 0, 1])
    writer.add_key_length(24)
    writer.add_value_length(8)
    writer.add_vocab_size(100)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    limits = model_limits(source)
    assert limits.cache_bytes_per_token == (4 + 0 + 1) * (24 + 8) * 2
    assert (limits.vocabulary_size, limits.has_chat_template) == (100, False)


def test_limits_need_an_architecture(tmp_path: Path) -> None:
    source = tmp_path / "bare.gguf"
    source.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    with pytest.raises(StepFailed) as caught:
        model_limits(source)
    assert caught.value.code == "gguf-malformed" and "general.architecture" in caught.value.message
