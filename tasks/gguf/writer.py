"""Writing the header of a GGUF file that has another file's metadata, and tensors of other types."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from gguf.constants import GGMLQuantizationType, GGUFValueType

from tasks.gguf.file import GGUFFile, Tensor, padded, tensor_size
from tasks.gguf.header import FIXED, MAGIC, VERSION


def rewritten_header(
    source: GGUFFile, integers: Mapping[str, int], types: Sequence[GGMLQuantizationType]
) -> tuple[bytes, tuple[Tensor, ...]]:
    """The header of a file like `source` whose tensors have `types`, and its tensors with their offsets.

    All metadata is copied byte for byte and in order. Only the fields in `integers` become UINT32 of those values, in
    their place or, if they were missing, at the end. The header's length is a multiple of the alignment.
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
    fixed = FIXED.pack(MAGIC, VERSION, len(source.tensors), len(source.fields) + len(missing))
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
