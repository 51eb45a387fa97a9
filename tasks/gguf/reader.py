"""Reading the header of a GGUF file, with everything in it checked.

`gguf.GGUFReader` trusts its input and builds an array for every token of the vocabulary. This reader checks every
count, length and offset against the file before it uses it, and keeps only where the values lie.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import replace
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from infra.errors import StepFailed
from tasks.gguf.file import (
    SCALARS,
    Field,
    GGUFFile,
    Tensor,
    malformed,
    padded,
    tensor_size,
    unsupported,
)
from tasks.gguf.header import FIXED, MAGIC, unreadable
from tasks.gguf.parts import parts_of

# ggml's GGML_MAX_DIMS.
_MAXIMUM_DIMENSIONS = 4
# The fewest bytes that an entry can take. A count that cannot fit into the file is refused before any loop.
_SMALLEST_FIELD = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8


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
        """Return `count`, or refuse it if so many entries cannot fit into the rest of the file."""
        if count * smallest > len(self.data) - self.position:
            raise malformed(self.path, f"{count} {what} do not fit into {len(self.data)} bytes")
        return count


_SPLIT = ("split.no", "split.count", "split.tensors.count")
"""What `gguf-split` of llama.cpp notes in each part: its number from 0, how many there are, and all their tensors.

Only the first part has the model's own metadata. Source: `tools/gguf-split` and `llama_model_loader`.
"""


def read_gguf(path: Path) -> GGUFFile:
    """Map `path`, and the other parts of a split model beside it, and check their whole headers. Reads no tensor.

    Raises StepFailed `gguf-malformed` (no GGUF, truncated, or impossible counts, offsets or types), `gguf-unsupported`
    (big-endian, another version, a later part of a split model, or a tensor type that `gguf` does not know),
    `gguf-parts` (parts are missing, or are those of another model) or `gguf-unreadable`.
    """
    first = _read_file(path)
    number, count, _ = _split(first)
    if count < 2:
        return first
    names = parts_of(path.name)
    if number > 0:
        raise unsupported(path, f"part {number + 1} of a model of {count}", "name the first part")
    if len(names) != count or path.name != names[0]:
        raise unsupported(
            path, f"the first of {count} parts by its metadata, and not by its name", f"NAME-00001-of-{count:05}.gguf"
        )
    return _joined(first, [path.with_name(name) for name in names[1:]])


def _joined(first: GGUFFile, others: list[Path]) -> GGUFFile:
    """A model of several files, as if it were one."""
    if missing := [other.name for other in others if not other.is_file()]:
        raise _unfit(first, f"its parts {', '.join(missing)} are missing")
    _, count, total = _split(first)
    files = [first, *map(_read_file, others)]
    for number, file in enumerate(files[1:], 1):
        if (found := _split(file)) != (number, count, total):
            raise _unfit(first, f"{file.path.name} is part {found[0] + 1} of {found[1]} with {found[2]} tensors in all")
    tensors = [replace(tensor, part=part) for part, file in enumerate(files) for tensor in file.tensors]
    if len(tensors) != total:
        raise _unfit(first, f"it has {total} tensors in all, and its {count} parts hold {len(tensors)}")
    if len({tensor.name for tensor in tensors}) != total:
        raise _unfit(first, "two of its parts hold a tensor of one name")
    fields = {key: field for key, field in first.fields.items() if key not in _SPLIT}
    return replace(first, fields=fields, tensors=tensors, other_parts=tuple(file.data for file in files[1:]))


def _split(file: GGUFFile) -> tuple[int, int, int]:
    """The values of _SPLIT; 0 for each that is missing."""
    number, count, total = ((file.integers(key) or [0])[0] for key in _SPLIT)
    return number, count, total


def _unfit(first: GGUFFile, what: str) -> StepFailed:
    return StepFailed(
        f"{first.path.name} cannot be joined with its other parts: {what}",
        code="gguf-parts",
        hint="fetch all parts of one model, and compare their sha256 with the publisher's",
    )


def _read_file(path: Path) -> GGUFFile:
    try:
        with path.open("rb") as stream:
            if stream.seek(0, 2) < FIXED.size:
                raise malformed(path, "shorter than a header")
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StepFailed(
            f"cannot read {path}: {error.strerror}",
            code="gguf-unreadable",
            hint="check the path and its owner",
        ) from error
    cursor = _Cursor(path, data)
    magic, version, tensor_count, field_count = FIXED.unpack_from(data, cursor.skip(FIXED.size))
    if magic != MAGIC or version == 0:
        raise malformed(path, f"it starts with {magic!r} and version {version}")
    if form := unreadable(version):
        raise unsupported(path, *form)

    fields: dict[str, Field] = {}
    for _ in range(cursor.expect(field_count, _SMALLEST_FIELD, "metadata entries")):
        field = _read_field(cursor)
        if field.key in fields:
            raise malformed(path, f"it has {field.key} twice")
        fields[field.key] = field
    header = GGUFFile(path, data, fields, (), GGUF_DEFAULT_ALIGNMENT)
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
        cursor.skip(count * struct.calcsize("<" + SCALARS[kind]))
    return Field(key, kind, is_array, count, start, values, cursor.position)


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[Tensor, ...]:
    path = cursor.path
    described: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]] = []
    for _ in range(count):
        name = cursor.string()
        dimensions = cursor.number("I")
        if dimensions > _MAXIMUM_DIMENSIONS:
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
        raise malformed(path, "two tensors have one name")
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
