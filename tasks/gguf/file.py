"""The GGUF container: where the metadata and the tensors of a file lie.

Values stay in the file until they are asked for, and metadata can be copied byte for byte. Layout: `docs/gguf.md` of
ggml, of the versions that `header` names.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from infra.errors import StepFailed

SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
"""The types of fixed length, with their letters of `struct`."""


@dataclass(frozen=True)
class Field:
    """One metadata entry. Bytes `start` to `stop` hold key, type and value; the value begins at `values`.

    For an array, `type` is the type of its elements and `count` their number; otherwise `count` is 1.
    """

    key: str
    type: GGUFValueType
    is_array: bool
    count: int
    start: int
    values: int
    stop: int


@dataclass(frozen=True)
class Tensor:
    """One tensor. `shape` has the row length first, as in the file. `offset` counts bytes from the first byte of its
    file, which is the model's `part`, counted from 0; `size` is in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int
    part: int = 0

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def dimensions(self) -> int:
        """The number of dimensions without trailing ones of length 1, as in ggml."""
        return max((index for index, length in enumerate(self.shape, 1) if length > 1), default=0)


@dataclass(frozen=True)
class GGUFFile:
    """An open model: one file, or the first part of a split one with its others mapped beside it.

    A mapping is released with the last reference to this object and to views of it.
    """

    path: Path
    data: mmap.mmap
    fields: Mapping[str, Field]
    tensors: Sequence[Tensor]
    alignment: int
    other_parts: tuple[mmap.mmap, ...] = ()

    def data_of(self, tensor: Tensor) -> mmap.mmap:
        """The file that a tensor lies in."""
        return (self.data, *self.other_parts)[tensor.part]

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def integers(self, key: str) -> list[int] | None:
        """The values of an integer field, one or an array of them; None if the field is missing."""
        field = self.fields.get(key)
        if field is None:
            return None
        letter = SCALARS.get(field.type)
        if letter is None or letter in "fd?":
            raise malformed(self.path, f"{key} is {field.type.name}, not an integer")
        return list(struct.unpack_from(f"<{field.count}{letter}", self.data, field.values))

    def text(self, key: str) -> str | None:
        """The value of a string field; None if it is missing."""
        field = self.fields.get(key)
        if field is None:
            return None
        if field.is_array or field.type is not GGUFValueType.STRING:
            raise malformed(self.path, f"{key} is not a string")
        return self.data[field.values + 8 : field.stop].decode("utf-8", errors="replace")


def malformed(path: Path, what: str) -> StepFailed:
    """The error for bytes that GGUF does not allow."""
    return StepFailed(
        f"{path.name} is not a sound GGUF file: {what}",
        code="gguf-malformed",
        hint="fetch it again and compare its sha256 with the publisher's",
    )


def unsupported(path: Path, what: str, hint: str) -> StepFailed:
    """The error for a sound file that Enginehouse cannot use."""
    return StepFailed(f"{path.name}: {what}", code="gguf-unsupported", hint=hint)


def padded(position: int, alignment: int) -> int:
    """The next multiple of `alignment`, which is a power of two."""
    return (position + alignment - 1) & -alignment


def tensor_size(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor; the row length must be a multiple of the type's block."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return prod(shape) // block * block_bytes
