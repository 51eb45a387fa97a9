"""The GGUF container: a checked map of where everything lies, and the header of a new file.

`gguf.GGUFReader` trusts its input and builds an array for every token of the vocabulary. Here every count,
length and offset is checked against the file before it is used, values stay where they are until somebody
asks, and metadata can be copied byte for byte. Layout: `docs/gguf.md` of ggml, versions 2 and 3 (which
differ in nothing that is read here), little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from infra.errors import StepFailed

MAGIC = b"GGUF"
VERSION = 3
# ggml's GGML_MAX_DIMS.
MAXIMUM_DIMENSIONS = 4

_FIXED = struct.Struct("<4sIQQ")
# The fewest bytes an entry can take; a count that cannot fit the file is refused before any loop.
_SMALLEST_FIELD = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8
_SCALARS = {
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


@dataclass(frozen=True)
class Field:
    """One metadata entry: bytes `start` to `stop` hold key, type and value, `values` is where values begin.

    `type` is the type of the elements where `is_array`; `count` is then their number, else 1.
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
    """One tensor. `shape` has the row length first, as the file does; `offset` counts from the file's
    first byte, `size` is in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def dimensions(self) -> int:
        """How many dimensions mean something: trailing ones do not count, as in ggml."""
        return max((index for index, length in enumerate(self.shape, 1) if length > 1), default=0)


@dataclass(frozen=True)
class GGUFFile:
    """An open file. The mapping is released with the last reference to this object and to views of it."""

    path: Path
    data: mmap.mmap
    fields: Mapping[str, Field]
    tensors: Sequence[Tensor]
    alignment: int

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def integers(self, key: str) -> list[int] | None:
        """The values of an integer field, one or an array of them; None where the field is missing."""
        field = self.fields.get(key)
        if field is None:
            return None
        letter = _SCALARS.get(field.type)
        if letter is None or letter in "fd?":
            raise malformed(self.path, f"{key} is {field.type.name}, not an integer")
        return list(struct.unpack_from(f"<{field.count}{letter}", self.data, field.values))

    def text(self, key: str) -> str | None:
        """The value of a string field; None where it is missing."""
        field = self.fields.get(key)
        if field is None:
            return None
        if field.is_array or field.type is not GGUFValueType.STRING:
            raise malformed(self.path, f"{key} is not a string")
        return self.data[field.values + 8 : field.stop].decode("utf-8", errors="replace")


def malformed(path: Path, what: str) -> StepFailed:
    """The error for bytes that are not what GGUF says they must be."""
    return StepFailed(
        f"{path.name} is not a sound GGUF file: {what}",
        code="gguf-malformed",
        hint="fetch it again and compare its sha256 with the publisher's",
    )


def unsupported(path: Path, what: str, hint: str) -> StepFailed:
    """The error for a sound file that Enginehouse cannot work with."""
    return StepFailed(f"{path.name}: {what}", code="gguf-unsupported", hint=hint)


def padded(position: int, alignment: int) -> int:
    """The next multiple of `alignment`, which is a power of two."""
    return (position + alignment - 1) & -alignment


def tensor_size(shape: Sequence[int], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor; the row length must be a multiple of the type's block."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return prod(shape) // block * block_bytes


class _Cursor:
    """Reads forward through a mapping and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def skip(self, length: int) -> int:
        """Step over `length` bytes and return where they start."""
        start = self.position
        if length > len(self.data) - start:
            raise malformed(self.path, f"truncated: {length} bytes expected at offset {start}")
        self.position = start + length
        return start

    def number(self, letter: str) -> int:
        return struct.unpack_from("<" + letter, self.data, self.skip(struct.calcsize("<" + letter)))[0]

    def string(self) -> str:
        length = self.number("Q")
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise malformed(self.path, f"the name at offset {start} is not UTF-8") from error

    def value_type(self) -> GGUFValueType:
        number = self.number("I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise malformed(self.path, f"unknown value type {number} at offset {self.position - 4}") from error

    def expect(self, count: int, smallest: int, what: str) -> int:
        """Refuse a count of things that could not fit into the rest of the file."""
        if count * smallest > len(self.data) - self.position:
            raise malformed(self.path, f"{count} {what} do not fit into {len(self.data)} bytes")
        return count


def read_gguf(path: Path) -> GGUFFile:
    """Map `path` and check its whole header; no tensor data is read.

    Raises StepFailed: `gguf-malformed` (no GGUF, truncated, counts, offsets or types that cannot be),
    `gguf-unsupported` (big-endian, version 1, a part of a split file, a tensor type `gguf` does not know).
    """
    try:
        with path.open("rb") as stream:
            if stream.seek(0, 2) < _FIXED.size:
                raise malformed(path, "shorter than a header")
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StepFailed(
            f"cannot read {path}: {error.strerror}",
            code="gguf-unreadable",
            hint="check the path and its owner",
        ) from error
    cursor = _Cursor(path, data)
    magic, version, tensor_count, field_count = _FIXED.unpack_from(data, cursor.skip(_FIXED.size))
    if magic != MAGIC:
        raise malformed(path, f"it starts with {magic!r}")
    if version not in (2, VERSION):
        byte_order = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise unsupported(path, f"{byte_order} GGUF", "convert it again with a current llama.cpp")

    fields: dict[str, Field] = {}
    for _ in range(cursor.expect(field_count, _SMALLEST_FIELD, "metadata entries")):
        field = _read_field(cursor)
        if field.key in fields:
            raise malformed(path, f"{field.key} twice")
        fields[field.key] = field
    header = GGUFFile(path, data, fields, (), GGUF_DEFAULT_ALIGNMENT)
    if (header.integers("split.count") or [1])[0] > 1:
        raise unsupported(path, "one part of a split file", "join the parts with `llama-gguf-split --merge`")
    alignment = (header.integers("general.alignment") or [GGUF_DEFAULT_ALIGNMENT])[0]
    if alignment <= 0 or alignment & (alignment - 1):
        raise malformed(path, f"alignment {alignment} is not a power of two")
    tensors = _read_tensors(cursor, cursor.expect(tensor_count, _SMALLEST_TENSOR, "tensors"), alignment)
    return GGUFFile(path, data, fields, tensors, alignment)


def _read_field(cursor: _Cursor) -> Field:
    start = cursor.position
    key = cursor.string()
    kind = cursor.value_type()
    is_array = kind is GGUFValueType.ARRAY
    count = 1
    if is_array:
        kind = cursor.value_type()
        count = cursor.number("Q")
    values = cursor.position
    if kind is GGUFValueType.ARRAY:
        raise malformed(cursor.path, f"{key} is an array of arrays")
    if kind is GGUFValueType.STRING:
        for _ in range(cursor.expect(count, 8, f"strings of {key}")):
            cursor.skip(cursor.number("Q"))
    else:
        cursor.skip(count * struct.calcsize("<" + _SCALARS[kind]))
    return Field(key, kind, is_array, count, start, values, cursor.position)


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[Tensor, ...]:
    path = cursor.path
    described: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]] = []
    for _ in range(count):
        name = cursor.string()
        dimensions = cursor.number("I")
        if dimensions > MAXIMUM_DIMENSIONS:
            raise malformed(path, f"{name} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))
        number, offset = cursor.number("I"), cursor.number("Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise unsupported(
                path, f"{name} has the unknown tensor type {number}", "use a file of a current, common type"
            ) from error
        if 0 in shape or (shape[0] if shape else 1) % GGML_QUANT_SIZES[kind][0]:
            raise malformed(path, f"{name} of type {kind.name} cannot have the shape {list(shape)}")
        described.append((name, shape, kind, offset))

    if len({name for name, *_ in described}) != count:
        raise malformed(path, "two tensors of one name")
    data_start = position = padded(cursor.position, alignment)
    tensors: list[Tensor] = []
    for name, shape, kind, offset in described:
        # llama.cpp refuses gaps and overlaps too; with overlaps a small file could claim any amount of data.
        if data_start + offset != position:
            raise malformed(path, f"{name} does not start where the tensor before it ends")
        size = tensor_size(shape, kind)
        if position + size > len(cursor.data):
            raise malformed(path, f"truncated: {name} ends at {position + size} of {len(cursor.data)} bytes")
        tensors.append(Tensor(name, shape, kind, position, size))
        position = padded(position + size, alignment)
    return tuple(tensors)


def rewritten_header(
    source: GGUFFile, integers: Mapping[str, int], types: Sequence[GGMLQuantizationType]
) -> tuple[bytes, tuple[Tensor, ...]]:
    """The header of a file like `source` whose tensors have `types`, and where its tensors will lie.

    All metadata is copied byte for byte and in order, except that the fields in `integers` become UINT32 of
    those values (in place, or at the end where they were missing). The header ends aligned.
    """
    missing = [key for key in integers if key not in source.fields]
    metadata = b"".join((*_copied_fields(source, integers), *(_integer(key, integers[key]) for key in missing)))
    descriptions: list[bytes] = []
    relative: list[int] = []
    position = 0
    for tensor, kind in zip(source.tensors, types, strict=True):
        name = tensor.name.encode()
        descriptions.append(
            struct.pack(
                f"<Q{len(name)}sI{len(tensor.shape)}QIQ",
                *(len(name), name, len(tensor.shape), *tensor.shape, kind, position),
            )
        )
        relative.append(position)
        position = padded(position + tensor_size(tensor.shape, kind), source.alignment)
    fixed = _FIXED.pack(MAGIC, VERSION, len(source.tensors), len(source.fields) + len(missing))
    header = b"".join((fixed, metadata, *descriptions))
    header += bytes(padded(len(header), source.alignment) - len(header))
    tensors = tuple(
        Tensor(tensor.name, tensor.shape, kind, len(header) + offset, tensor_size(tensor.shape, kind))
        for tensor, kind, offset in zip(source.tensors, types, relative, strict=True)
    )
    return header, tensors


def _copied_fields(source: GGUFFile, integers: Mapping[str, int]) -> Iterator[bytes]:
    for field in source.fields.values():
        if field.key in integers:
            yield _integer(field.key, integers[field.key])
        else:
            yield source.data[field.start : field.stop]


def _integer(key: str, value: int) -> bytes:
    encoded = key.encode()
    return struct.pack(f"<Q{len(encoded)}sII", len(encoded), encoded, GGUFValueType.UINT32, value)
