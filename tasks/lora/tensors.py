"""The tensors of a safetensors file, read and changed in the file without bringing it into memory.

The safetensors library copies values, and its numpy interface has no bfloat16. A MappedTensor of any size is a mapping
of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, TypedDict, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from infra.errors import StepFailed
from tasks.lora.config import unfit

Floats = NDArray[np.float32]
Numbers = NDArray[np.generic]
"""Numbers of any of DTYPES. numpy has no class for bfloat16."""

DTYPES: dict[str, np.dtype[np.generic]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ROWS_BYTES = 16 << 20


@dataclass(frozen=True)
class MappedTensor:
    """A tensor in a file. `dtype` is as safetensors names it, `offset` in bytes from the file's beginning."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def mapped(self, mode: Literal["r", "r+"] = "r") -> Numbers:
        """The tensor as it lies in the file. Raises StepFailed `adapter-unfit` if it has none of DTYPES."""
        if self.dtype not in DTYPES:
            raise unfit(f"{self.name} has the type {self.dtype}, and only {', '.join(DTYPES)} can be merged")
        if not prod(self.shape):
            return np.zeros(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], mode, self.offset, self.shape)

    def change(self, changed: Callable[[Floats, int], Floats]) -> None:
        """Replace some rows after others in the file. `changed` gets the rows as float32, and the number of the first.

        Raises StepFailed `weights-out-of-range` for a result that is NaN, infinite or too large for the tensor's type.
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
                    hint="is the adapter damaged, or was it trained on other weights?",
                    code="weights-out-of-range",
                )


class _Entry(TypedDict):
    """A tensor in the header: `data_offsets`, first and end, count from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def tensors_of(path: Path) -> Iterator[MappedTensor]:
    """The tensors of a safetensors file of a snapshot. When it was fetched, their bytes were found to lie in the file.

    Raises StepFailed `adapter-unfit` for a tensor whose shape needs another number of bytes than it has.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = cast(dict[str, _Entry], json.loads(file.read(length)))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, end = entry["data_offsets"]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is not None and prod(entry["shape"]) * dtype.itemsize != end - first:
            raise unfit(f"{name} in {path.name} has the shape {entry['shape']} and {end - first} bytes")
        yield MappedTensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + first)
