"""Merge: the weights of a model with those of an adapter, changed in place, tensor by tensor.

Memory holds some rows of one matrix. Sums are float32 and rounded once to the type of the weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.lora.adapter import Adapter, read_adapter
from tasks.lora.tensors import Placed, tensors_of, unfit


def merged(snapshot: Path, adapter: Path, output: Path) -> Path:
    """A snapshot in safetensors with an adapter in it, as the new folder `output`, which is returned.

    Files that the adapter does not touch are the same, for no disk space. The tokenizer is that of `snapshot`. Raises
    StepFailed `adapter-unfit` where the adapter names what is not there, or has other shapes.
    """
    wanted = read_adapter(adapter)
    tensors = (tensor for path in sorted(snapshot.rglob("*.safetensors")) for tensor in tensors_of(path))
    concerned = fitting(wanted, tensors)
    touched = {tensor.path for tensor in concerned}
    output.mkdir()
    for path in sorted(snapshot.rglob("*")):
        place = output / path.relative_to(snapshot)
        if path.is_dir():
            place.mkdir()
        elif path in touched:
            shutil.copyfile(path, place)
        else:
            os.link(path, place)
    for tensor in concerned:
        merge_tensor(wanted, replace(tensor, path=output / tensor.path.relative_to(snapshot)))
    return output


def fitting(adapter: Adapter, tensors: Iterable[Placed]) -> list[Placed]:
    """Those of `tensors`, under the names that PEFT has for them, that the adapter changes. Raises StepFailed.

    All is looked at before anything is changed.
    """
    shapes = {name: low_rank.shape for name, low_rank in adapter.added.items()}
    whole = {name: tensor.shape for name, tensor in adapter.replaced.items()}
    concerned = [tensor for tensor in tensors if tensor.name in shapes or tensor.name in whole]
    missing = sorted((shapes.keys() | whole.keys()) - {tensor.name for tensor in concerned})
    if missing:
        raise unfit(f"the model has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")
    for tensor in concerned:
        for wanted in (shapes, whole):
            shape = wanted.get(tensor.name, tensor.shape)
            if shape != tensor.shape:
                raise unfit(f"it has {tensor.name} of shape {list(shape)}, the model one of {list(tensor.shape)}")
    return concerned


def merge_tensor(adapter: Adapter, tensor: Placed) -> None:
    """Change a tensor, which fits, as the adapter says."""
    if (whole := adapter.replaced.get(tensor.name)) is not None:
        values = whole.mapped()
        tensor.change(lambda rows, first: values[first : first + len(rows)].astype(np.float32))
    if (low_rank := adapter.added.get(tensor.name)) is not None:
        tensor.change(low_rank.added_to)
