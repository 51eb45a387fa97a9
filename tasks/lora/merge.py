"""Merge an adapter into the weights of a model, in place, tensor by tensor.

Memory holds some rows of one matrix at a time. Sums are float32 and are rounded once, to the type of the weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tasks.lora.adapter import Adapter, read_adapter
from tasks.lora.config import unfit
from tasks.lora.experts import for_experts
from tasks.lora.names import short_name
from tasks.lora.tensors import MappedTensor, tensors_of


def merged(snapshot: Path, adapter: Path, output: Path) -> Path:
    """Write a snapshot in safetensors with an adapter merged into it as the new folder `output`, and return that.

    Files that the adapter does not change are hard links and take no disk space. The tokenizer is that of `snapshot`.
    Raises StepFailed `adapter-unfit` if the adapter names a tensor that the model lacks, or has other shapes.
    """
    tensors = [tensor for path in sorted(snapshot.rglob("*.safetensors")) for tensor in tensors_of(path)]
    wanted = for_experts(read_adapter(adapter), tensors)
    concerned = fitting(wanted, _under_its_names(wanted, tensors))
    touched = {tensor.path for tensor in concerned}
    output.mkdir()
    for path in sorted(snapshot.rglob("*")):
        target = output / path.relative_to(snapshot)
        if path.is_dir():
            target.mkdir()
        elif path in touched:
            shutil.copyfile(path, target)
        else:
            os.link(path, target)
    for tensor in concerned:
        merge_tensor(wanted, replace(tensor, path=output / tensor.path.relative_to(snapshot)))
    return output


def _under_its_names(adapter: Adapter, tensors: Sequence[MappedTensor]) -> Iterator[MappedTensor]:
    """The tensors that the adapter may change, under its names for them.

    A name that the model has itself means nothing else. Of names that differ in their form alone (see `short_name`),
    only one of each side may be left. Raises StepFailed `adapter-unfit` if one may mean two tensors of the model.
    """
    names = adapter.sums.keys() | adapter.replaced.keys()
    common = names & {tensor.name for tensor in tensors}
    others = {short_name(name): name for name in sorted(names - common)}
    meant: dict[str, str] = {}
    for tensor in tensors:
        name = tensor.name if tensor.name in common else others.get(short_name(tensor.name))
        if name is None:
            continue
        if meant.setdefault(name, tensor.name) != tensor.name:
            raise unfit(f"{name} may be {meant[name]} or {tensor.name} of the model")
        yield replace(tensor, name=name)


def fitting(adapter: Adapter, tensors: Iterable[MappedTensor]) -> list[MappedTensor]:
    """Return those of `tensors` that the adapter changes. Their names must be those that it has for them.

    Changes nothing. Raises StepFailed `adapter-unfit` if the adapter has a tensor that the model lacks, or one of
    another shape.
    """
    shapes = {name: added.shape for name, added in adapter.sums.items()}
    whole = {name: tensor.shape for name, tensor in adapter.replaced.items()}
    concerned = [tensor for tensor in tensors if tensor.name in shapes or tensor.name in whole]
    missing = sorted((shapes.keys() | whole.keys()) - {tensor.name for tensor in concerned})
    if missing:
        raise unfit(f"the model has no {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")
    for tensor in concerned:
        for wanted in (shapes, whole):
            shape = wanted.get(tensor.name, tensor.shape)
            if shape != tensor.shape:
                raise unfit(f"{tensor.name} has the shape {list(shape)} in it and {list(tensor.shape)} in the model")
    return concerned


def merge_tensor(adapter: Adapter, tensor: MappedTensor) -> None:
    """Change a tensor that fits (see `fitting`)."""
    if (whole := adapter.replaced.get(tensor.name)) is not None:
        values = whole.mapped()
        tensor.change(lambda rows, first: values[first : first + len(rows)].astype(np.float32))
    if (added := adapter.sums.get(tensor.name)) is not None:
        tensor.change(added.added_to)
