"""Where the tensors of a safetensors file lie, to read and change them without bringing the file into memory.

The library gives values, and no numpy of bfloat16; here a tensor of any size is a mapping of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from infra.errors import StepFailed

Floats = NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ROWS_BYTES = 16 << 20


@dataclass(frozen=True)
class Placed:
    """A tensor in a file: `dtype` as safetensors names it, `offset` in bytes from the file's beginning."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def mapped(self, mode: Literal["r", "r+"] = "r") -> NDArray[Any]:
        """The tensor as it lies there. Raises StepFailed where it holds no numbers of 16 or 32 bits."""
        if self.dtype not in DTYPES:
            raise unfit(f"{self.name} is of {self.dtype}, and only {', '.join(DTYPES)} can be merged")
        if not prod(self.shape):
            return np.zeros(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], mode, self.offset, self.shape)

    def change(self, changed: Callable[[Floats, int], Floats]) -> None:
        """Replace the tensor row by row in its place: `changed` gets some rows and the number of the first.

        Raises StepFailed `weights-out-of-range` for what is no number, or too large for the tensor.
        """
        target = self.mapped("r+")
        step = max(1, _ROWS_BYTES // max(1, 4 * prod(self.shape[1:])))
        for first in range(0, len(target), step):
            rows = target[first : first + step]
            with np.errstate(over="ignore", invalid="ignore"):
                rows[...] = changed(rows.astype(np.float32), first)
            if not np.isfinite(rows).all():
                raise StepFailed(
                    f"{self.name} with the adapter holds numbers that {self.dtype} cannot",
                    hint="is the adapter damaged, or made for other weights?",
                    code="weights-out-of-range",
                )


def tensors_of(path: Path) -> Iterator[Placed]:
    """The tensors of a safetensors file of a snapshot, where their bytes were found to lie in the file when it came.

    Raises StepFailed `adapter-unfit` for one whose shape says another length.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = cast(dict[str, Any], json.loads(file.read(length)))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is not None and prod(entry["shape"]) * dtype.itemsize != end - first:
            raise unfit(f"{name} in {path.name} is of shape {entry['shape']}, and has {end - first} bytes")
        yield Placed(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + first)


def unfit(what: str) -> StepFailed:
    """The error for an adapter that cannot be merged into these weights."""
    return StepFailed(
        f"the adapter does not fit: {what}",
        hint="name the model that it was trained on as `source`, or merge it where it was trained and name the result",
        code="adapter-unfit",
    )
