"""Safetensors files, read with the errors of the real library in its own words.

Up to 0.5 the library prints the names of its errors, from 0.6 on sentences; both were seen.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1}
_LONGEST_HEADER = 100_000_000


class SafetensorError(Exception):
    pass


SafetensorError.__module__ = "safetensors_rust"


@dataclass(frozen=True)
class Tensor:
    dtype: str
    """As safetensors names it: `BF16`."""
    shape: tuple[int, ...]
    data: bytes


def read(path: Path, *, sentences: bool) -> dict[str, Tensor]:
    """All tensors of `path`. With `sentences` errors are worded as from 0.6 on."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f'No such file or directory: "{path}"') from None
    if len(content) < 8:
        raise _broken("HeaderTooSmall", "header too small", sentences)
    (length,) = struct.unpack_from("<Q", content)
    if length > _LONGEST_HEADER:
        raise _broken("HeaderTooLarge", "header too large", sentences)
    body = content[8 + length :]
    if len(content) < 8 + length:
        raise _broken("InvalidHeaderLength", "invalid header length", sentences)
    try:
        header: dict[str, dict[str, Any]] = json.loads(content[8 : 8 + length])
    except ValueError as error:
        raise _broken("InvalidHeaderDeserialization", f"invalid JSON in header: {error}", sentences) from None
    header.pop("__metadata__", None)
    if max((entry["data_offsets"][1] for entry in header.values()), default=0) != len(body):
        raise _broken("MetadataIncompleteBuffer", "incomplete metadata, file not fully covered", sentences)
    return {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values()))


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """The numbers as another floating-point type. BF16 is cut off, not rounded."""
    if dtype == tensor.dtype:
        return tensor
    count = len(tensor.data) // ITEM_BYTES[tensor.dtype]
    if tensor.dtype == "BF16":
        wide = b"".join(b"\0\0" + tensor.data[at : at + 2] for at in range(0, len(tensor.data), 2))
        values = struct.unpack(f"<{count}f", wide)
    else:
        values = struct.unpack(f"<{count}{'e' if tensor.dtype == 'F16' else 'f'}", tensor.data)
    if dtype == "BF16":
        wide = struct.pack(f"<{count}f", *values)
        return Tensor(dtype, tensor.shape, b"".join(wide[at + 2 : at + 4] for at in range(0, len(wide), 4)))
    return Tensor(dtype, tensor.shape, struct.pack(f"<{count}{'e' if dtype == 'F16' else 'f'}", *values))


def part(tensor: Tensor, dimension: int, index: int, parts: int) -> Tensor:
    """The `index`-th of `parts` equal parts of a matrix or vector, its first dimension padded with zeros to fit."""
    item = ITEM_BYTES[tensor.dtype]
    if dimension == 0:
        rows, row = tensor.shape[0], item * (tensor.shape[1] if len(tensor.shape) > 1 else 1)
        size = -(-rows // parts)
        data = tensor.data.ljust(size * parts * row, b"\0")
        return Tensor(tensor.dtype, (size, *tensor.shape[1:]), data[index * size * row : (index + 1) * size * row])
    rows, columns = tensor.shape
    size = columns // parts
    starts = [(line * columns + index * size) * item for line in range(rows)]
    return Tensor(tensor.dtype, (rows, size), b"".join(tensor.data[at : at + size * item] for at in starts))


def stack(*tensors: Tensor) -> Tensor:
    """The matrices one below the other."""
    rows = sum(tensor.shape[0] for tensor in tensors)
    return Tensor(tensors[0].dtype, (rows, *tensors[0].shape[1:]), b"".join(tensor.data for tensor in tensors))


def _broken(name: str, sentence: str, sentences: bool) -> SafetensorError:
    return SafetensorError(f"Error while deserializing header: {sentence if sentences else name}")
