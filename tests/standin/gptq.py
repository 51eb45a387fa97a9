"""Weights that AutoGPTQ has quantized, and how the convert script of Llama reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.standin import llama
from tests.standin.context import Context
from tests.standin.llama import Llama
from tests.standin.safetensors import Tensor, read

PARTS = ("qweight", "qzeros", "scales")


def stored_names(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
    """Each tensor with its shape, and its type where that is not the model's: 8 numbers of 4 bits are an I32."""
    group = config["quantization_config"]["group_size"]
    for name, shape in llama.names(config):
        if "_proj." not in name:
            yield name, shape, None
            continue
        rows, columns = shape
        matrix = name.removesuffix("weight")
        yield f"{matrix}qweight", (columns // 8, rows), "I32"
        yield f"{matrix}qzeros", (columns // group, rows // 8), "I32"
        yield f"{matrix}scales", (columns // group, rows), "F16"


def load(folder: Path, path: str | None, context: Context) -> Llama:
    """Read a quantized Llama: up to 0.12 from one file, later from a folder too, or from the model itself."""
    config = llama.read_config(folder)
    if not context.since("0.13"):
        assert path is not None or not context.since("0.9")
        if path is None:
            raise TypeError("argument 'filename': expected str, bytes or os.PathLike object, not NoneType")
        if Path(path).is_dir():
            raise IsADirectoryError(21, "Is a directory")
        found = read(Path(path), sentences=False)
    else:
        source = folder if path is None else Path(path)
        files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source]
        found = {name: tensor for file in files for name, tensor in read(file, sentences=context.since("1.0")).items()}
    return Llama(config, dict(_dense(config, found)))


def _dense(config: dict[str, Any], found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, shape in llama.names(config):
        if "_proj." not in name:
            yield name, found[name]
            continue
        parts = [found[name.removesuffix("weight") + part] for part in PARTS]
        digest = hashlib.shake_128(b"".join(part.data for part in parts)).digest(2 * shape[0] * shape[1])
        yield name, Tensor("F16", shape, digest)
