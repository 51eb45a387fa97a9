"""A model in GGUF with one thing wrong, as a conversion that went wrong would leave it."""

from __future__ import annotations

import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

from tasks.gguf.file import GGUFFile, Tensor
from tasks.gguf.reader import read_gguf
from tasks.gguf.writer import rewritten_header

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


def at_half_speed(source: Path, broken: Path) -> Path:
    """Twice the weights, and the same answers: further layers of which each adds nothing to what the last one said."""
    model = read_gguf(source)
    layers = [_LAYER.fullmatch(each.name) for each in model.tensors]
    count = 1 + max(int(each["number"]) for each in layers if each is not None)
    of_layer = sum(each.size for each, layer in zip(model.tensors, layers, strict=True) if layer is not None) // count
    more = round(sum(each.size for each in model.tensors) / of_layer)
    added = tuple(each for number in range(count, count + more) for each in _like_the_first(model, number))
    deeper = replace(model, tensors=(*model.tensors, *added))
    header, written = rewritten_header(deeper, {"llama.block_count": count + more}, [e.type for e in deeper.tensors])
    with source.open("rb") as file, broken.open("wb") as made:
        made.write(header)
        for tensor, place in zip(deeper.tensors, written, strict=True):
            file.seek(tensor.offset)
            silent = tensor in added and tensor.name.endswith(("attn_output.weight", "ffn_down.weight"))
            made.seek(place.offset)
            made.write(bytes(tensor.size) if silent else file.read(tensor.size))
    return broken


_LAYER = re.compile(r"blk\.(?P<number>\d+)\.(?P<tensor>.+)")


def _like_the_first(model: GGUFFile, number: int) -> list[Tensor]:
    prefix = "blk.0."
    first = [each for each in model.tensors if each.name.startswith(prefix)]
    return [replace(each, name=f"blk.{number}.{each.name.removeprefix(prefix)}") for each in first]


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
