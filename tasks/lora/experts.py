"""What an adapter adds to the experts of a layer, which a model keeps in one tensor, or in matrices of their own.

PEFT trains them as parameters (`target_parameters`), stacked as transformers has them in memory. Source: ParamWrapper
of PEFT 0.21's `tuners/lora/layer.py`, and `_inject_parameters` of `tuners/tuners_utils.py` for the order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from tasks.lora.adapter import Adapter, Experts, LowRank
from tasks.lora.config import unfit
from tasks.lora.names import short_name
from tasks.lora.tensors import Floats, MappedTensor

# Names of an expert's own matrices, where a checkpoint has them apart: those of Qwen and DeepSeek, those of Mixtral.
# transformers stacks the gate's rows above those of the other (conversion_mapping.py).
_APART: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gate_up_proj": (("gate_proj", "w1"), ("up_proj", "w3")),
    "down_proj": (("down_proj", "w2"),),
}


@dataclass(frozen=True)
class Stacked:
    """What is added to a tensor of shape [experts, …, …]: a LowRank for each expert, or the same with its rows as
    columns."""

    experts: Sequence[LowRank]
    transposed: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        rows, columns = self.experts[0].shape
        return (len(self.experts), columns, rows) if self.transposed else (len(self.experts), rows, columns)

    def added_to(self, rows: Floats, first: int) -> Floats:
        """Experts from `first` on, with their part of the adapter added."""
        summed = [
            low_rank.added_to(matrix.T, 0).T if self.transposed else low_rank.added_to(matrix, 0)
            for matrix, low_rank in zip(rows, self.experts[first:], strict=False)
        ]
        return np.stack(summed)


def for_experts(adapter: Adapter, tensors: Collection[MappedTensor]) -> Adapter:
    """The adapter with what it adds to experts under the names that the model has for them.

    Raises StepFailed `adapter-unfit` if the model has none, or others.
    """
    added, stacked = dict(adapter.added), dict[str, Stacked]()
    shapes = {short_name(tensor.name): tensor.shape for tensor in tensors}
    for name, experts in adapter.experts.items():
        if (shape := shapes.get(short_name(name))) is not None:
            stacked[name] = _stacked(name, experts, shape)
        else:
            added.update(_apart(name, experts, shapes))
    return replace(adapter, added=added, stacked=stacked, experts={})


def _stacked(name: str, experts: Experts, shape: tuple[int, ...]) -> Stacked:
    rows, columns = experts.b.shape[0], experts.a.shape[1]
    if len(shape) != 3 or shape[1:] not in ((rows, columns), (columns, rows)):
        raise unfit(f"{name} adds matrices of {[rows, columns]}, and the model has {list(shape)}")
    if rows == columns:
        raise unfit(f"{name} has square matrices, of which nothing tells whether the model has them transposed")
    return Stacked(tuple(_each(name, experts, shape[0])), transposed=shape[1:] == (columns, rows))


def _apart(name: str, experts: Experts, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, LowRank]]:
    module, _, parameter = name.rpartition(".")
    for parts in zip(*_APART.get(parameter, ()), strict=True) if parameter in _APART else ():
        for place in (module, re.sub(r"\.mlp\.experts$", ".block_sparse_moe.experts", module)):
            count = 0
            while f"{short_name(place)}.{count}.{parts[0]}.weight" in shapes:
                count += 1
            for number, low_rank in enumerate(_each(name, experts, count) if count else ()):
                rows = low_rank.b.shape[0] // len(parts)
                for at, part in enumerate(parts):
                    own = low_rank.b[at * rows : (at + 1) * rows]
                    yield f"{place}.{number}.{part}.weight", replace(low_rank, b=own)
            if count:
                return
    raise unfit(f"the model has no {name}, and no experts of its own matrices")


def _each(name: str, experts: Experts, count: int) -> Iterator[LowRank]:
    """Of each expert. The first matrix has one expert's rows after another's; the second its columns in turns."""
    if experts.a.shape[0] % count:
        raise unfit(f"{name} has {experts.a.shape[0]} ranks, which {count} experts cannot share")
    rank = experts.a.shape[0] // count
    scale = experts.alpha / (sqrt(rank) if experts.rslora else rank)
    for number in range(count):
        yield LowRank(experts.a[number * rank : (number + 1) * rank], experts.b[:, number::count], scale)
