"""Merge: the weights of a model with those of an adapter, changed in place, tensor by tensor.

Memory holds some rows of one matrix. Sums are float32 and rounded once to the type of the weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from tasks.lora.adapter import Adapter, read_adapter
from tasks.lora.tensors import Floats, Placed, tensors_of, unfit


def merged(snapshot: Path, adapter: Path, output: Path) -> Path:
    """A snapshot in safetensors with an adapter in it, as the new folder `output`, which is returned.

    Files that the adapter does not touch are the same, for no disk space. The tokenizer is that of `snapshot`. Raises
    StepFailed `adapter-unfit` where the adapter names what is not there, or has other shapes.
    """
    wanted = read_adapter(adapter)
    there: dict[str, list[Placed]] = {}
    for path in sorted(snapshot.rglob("*.safetensors")):
        for tensor in tensors_of(path):
            there.setdefault(tensor.name, []).append(tensor)
    _require(wanted, there.keys())
    touched = {tensor.path for name in wanted.names() for tensor in there[name]}
    for path in sorted(snapshot.rglob("*")):
        place = output / path.relative_to(snapshot)
        if path.is_dir():
            place.mkdir(parents=True)
        elif path in touched:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
    for path in sorted(touched):
        for tensor in tensors_of(output / path.relative_to(snapshot)):
            merge_tensor(wanted, tensor.name, tensor)
    return output


def merge_tensor(adapter: Adapter, name: str, tensor: Placed) -> None:
    """Change the tensor that PEFT calls `name` as the adapter says, where it says something of it."""
    if name in adapter.replaced:
        whole = adapter.replaced[name]
        _require_shape(name, whole.shape, tensor)
        values = whole.mapped()

        def instead(rows: Floats, first: int) -> Floats:
            return values[first : first + len(rows)].astype("float32")

        tensor.change(instead)
    if name in adapter.added:
        _require_shape(name, adapter.added[name].shape, tensor)
        tensor.change(adapter.added[name].added_to)


def _require(adapter: Adapter, there: Collection[str]) -> None:
    missing = [name for name in adapter.names() if name not in there]
    if missing:
        raise unfit(f"the model has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")


def _require_shape(name: str, shape: tuple[int, ...], tensor: Placed) -> None:
    if shape != tensor.shape:
        raise unfit(f"it has {name} of shape {list(shape)}, the model one of {list(tensor.shape)}")
