"""GGUF files that are not what they claim to be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType

from infra.errors import StepFailed
from tasks.gguf.conversion import dequantize, quantize
from tasks.gguf.reader import read_gguf
from tests.tasks.gguf.small_models import weights, write

Type = GGMLQuantizationType


def ignore(_done: int, _total: int) -> None:
    pass


def header(version: int = 3, tensor_count: int = 0, field_count: int = 0, rest: bytes = b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensor_count, field_count) + rest


def one_tensor(shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, count: int = 1) -> bytes:
    tensor = struct.pack(f"<Q1sI{len(shape)}QIQ", 1, b"t", len(shape), *shape, kind, offset)
    return header(tensor_count=count, rest=tensor * count).ljust(256, b"\0") + bytes(256)


def field(value_type: int, value: bytes, key: bytes = b"key") -> bytes:
    return struct.pack(f"<Q{len(key)}sI", len(key), key, value_type) + value


HUGE = (1 << 64) - 1
HOSTILE = {
    "empty": (b"", "gguf-malformed"),
    "html": (b"<!doctype html><title>login</title>", "gguf-malformed"),
    "version 1": (header(version=1), "gguf-unsupported"),
    "big-endian": (header(version=3 << 24), "gguf-unsupported"),
    "tensor count": (header(tensor_count=HUGE), "gguf-malformed"),
    "field count": (header(field_count=HUGE), "gguf-malformed"),
    "key length": (header(field_count=1, rest=struct.pack("<Q", HUGE) + bytes(64)), "gguf-malformed"),
    "key bytes": (header(field_count=1, rest=field(0, b"\1", b"\xff\xfe")), "gguf-malformed"),
    "value type": (header(field_count=1, rest=field(99, bytes(8))), "gguf-malformed"),
    "array count": (header(field_count=1, rest=field(9, struct.pack("<IQ", 10, HUGE))), "gguf-malformed"),
    "string count": (header(field_count=1, rest=field(9, struct.pack("<IQ", 8, HUGE))), "gguf-malformed"),
    "nested array": (header(field_count=1, rest=field(9, struct.pack("<IQ", 9, 1))), "gguf-malformed"),
    "key twice": (header(field_count=2, rest=field(0, b"\1") * 2), "gguf-malformed"),
    "alignment": (
        header(field_count=1, rest=field(4, struct.pack("<I", 24), b"general.alignment")),
        "gguf-malformed",
    ),
    "split": (header(field_count=1, rest=field(2, b"\2\0", b"split.count")), "gguf-unsupported"),
    "dimensions": (one_tensor((1,) * 5), "gguf-malformed"),
    "no elements": (one_tensor((0,)), "gguf-malformed"),
    "half a block": (one_tensor((33,), kind=Type.Q8_0.value), "gguf-malformed"),
    "tensor type": (one_tensor(kind=4), "gguf-unsupported"),
    "beyond the file": (one_tensor((1 << 40, 1 << 40)), "gguf-malformed"),
    "offset": (one_tensor(offset=1 << 62), "gguf-malformed"),
    "name twice": (one_tensor(count=2), "gguf-malformed"),
    "no tensor": (header(), "gguf-unsupported"),
}


@pytest.mark.parametrize(("content", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused_with_a_hint(tmp_path: Path, content: bytes, code: str) -> None:
    source = tmp_path / "hostile.gguf"
    source.write_bytes(content)
    for attempt in (
        lambda: dequantize(source, tmp_path / "out.gguf", "float16", ignore),
        lambda: quantize(source, tmp_path / "out.gguf", "q8_0", ignore),
    ):
        with pytest.raises(StepFailed) as caught:
            attempt()
        assert caught.value.code == code
        assert caught.value.hint
    assert list(tmp_path.iterdir()) == [source]


def test_sound_one_tensor_file_is_accepted(tmp_path: Path) -> None:
    """The hostile files above fail for what their names say, not for how they are made."""
    source = tmp_path / "sound.gguf"
    source.write_bytes(one_tensor())
    dequantize(source, tmp_path / "out.gguf", "float16", ignore)
    assert [tensor.name for tensor in GGUFReader(tmp_path / "out.gguf").tensors] == ["t"]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", {"blk.0.ffn_up.weight": (weights(2, 32), None)}).read_bytes()
    source = tmp_path / "cut.gguf"
    # The 70 000 bytes of one token need no cut each; the last tensor has no padding here.
    for length in [*range(0, 1500, 7), *range(len(whole) - 1500, len(whole), 7)]:
        source.write_bytes(whole[:length])
        with pytest.raises(StepFailed) as caught:
            read_gguf(source)
        assert caught.value.code == "gguf-malformed"
