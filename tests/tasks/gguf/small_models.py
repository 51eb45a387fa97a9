"""Small GGUF files, made by `gguf` itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

Type = GGMLQuantizationType
Array = NDArray[Any]
TEMPLATE = "{% for message in messages %}{{ message.content }} é{% endfor %}"


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def blocks(kind: Type, rows: int, row_blocks: int) -> NDArray[np.uint8]:
    """Any bytes below 0x3C are a sound block of any type: no float16 made of them reaches 1."""
    length = row_blocks * GGML_QUANT_SIZES[kind][1]
    random = np.frombuffer(np.random.default_rng(kind).bytes(rows * length), np.uint8)
    return (random % np.uint8(0x3C)).astype(np.uint8).reshape(rows, length)


def write(
    path: Path,
    content: dict[str, tuple[Array, Type | None]],
    fill: Callable[[GGUFWriter], None] | None = None,
    *,
    tensors_per_part: int = 0,
) -> Path:
    """A small model with metadata of every type and the given tensors (array, and type of raw blocks).

    With `tensors_per_part` it is split into parts beside `path`, which is not written itself.
    """
    writer = GGUFWriter(path, "llama", split_max_tensors=tensors_per_part)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_token_list(["<s>", "ä", "", "b" * 70_000])
    writer.add_token_types([1, 2, 3, 4])
    writer.add_chat_template(TEMPLATE)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_int8("test.int8", -3)
    writer.add_uint64("test.uint64", 1 << 63)
    writer.add_array("test.floats", [0.5, 2.5])
    writer.add_array("test.bools", [True, False, True])
    if fill:
        fill(writer)
    finish(writer, content)
    return path


def finish(writer: GGUFWriter, content: Mapping[str, tuple[Array, Type | None]]) -> None:
    """Write the tensors (array, and type of raw blocks) behind the metadata, and close the file."""
    for name, (data, kind) in content.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checkpoint(folder: Path) -> Path:
    """A 16-bit model with a tensor for each rule on types."""
    return write(
        folder / "checkpoint.gguf",
        {
            "token_embd.weight": (weights(33, 64).astype(np.float16), None),
            "blk.0.ffn_norm.weight": (weights(64, seed=1), None),
            "blk.0.ffn_up.weight": (weights(5, 1056, seed=2).astype(np.float16), None),
            "blk.0.ffn_up_exps.weight": (weights(3, 7, 64, seed=3).astype(np.float16), None),
            "blk.0.ffn_odd.weight": (weights(31, 48, seed=4).astype(np.float16), None),
            "blk.0.ssm_conv1d.weight": (weights(64, 32, seed=5), None),
        },
    )
