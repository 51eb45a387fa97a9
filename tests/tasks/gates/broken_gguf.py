"""A model in GGUF with one thing wrong, as a conversion that went wrong would leave it."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from tasks.gguf.reader import read_gguf

_STRING = 8
_UINT32 = 4


def without_a_tensor(source: Path, broken: Path, name: str) -> Path:
    """All weights of one tensor are 0."""
    shutil.copyfile(source, broken)
    tensor = next(tensor for tensor in read_gguf(source).tensors if tensor.name == name)
    with broken.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(bytes(tensor.size))
    return broken


def with_another_template(source: Path, broken: Path) -> Path:
    """The marks of the chat template are words, which the model has never seen there."""
    header = _header(source)
    start = _value(header, b"tokenizer.chat_template", _STRING)
    (length,) = struct.unpack_from("<Q", header, start)
    template = slice(start + 8, start + 8 + length)
    header[template] = header[template].replace(b"<|im_start|>", b"### This is ")
    return _written(source, broken, header)


def without_its_end(source: Path, broken: Path) -> Path:
    """The token that ends a message has another name, and another one is said to end texts.

    Both, since llama.cpp knows the ends of messages by their names too.
    """
    header = _header(source)
    struct.pack_into("<I", header, _value(header, b"tokenizer.ggml.eos_token_id", _UINT32), 4)
    return _written(source, broken, bytearray(header.replace(b"<|im_end|>", b"<|im_enx|>")))


def _header(source: Path) -> bytearray:
    """Everything before the tensors."""
    first = min(tensor.offset for tensor in read_gguf(source).tensors)
    with source.open("rb") as file:
        return bytearray(file.read(first))


def _value(header: bytearray, key: bytes, kind: int) -> int:
    """Where the value of a key begins."""
    at = header.index(key) + len(key)
    assert struct.unpack_from("<I", header, at) == (kind,)
    return at + 4


def _written(source: Path, broken: Path, header: bytearray) -> Path:
    shutil.copyfile(source, broken)
    with broken.open("r+b") as file:
        file.write(header)
    return broken
