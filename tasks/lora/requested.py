"""Adapters that requests choose: nothing is merged, so an engine has to add them to what it computes.

Engines add the two small matrices of a module, and nothing else that PEFT knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tasks.lora.adapter import Adapter, LowRank, read_adapter
from tasks.lora.config import not_by_request, unfit
from tasks.lora.names import short_name
from tasks.lora.tensors import Floats

_MODULE = re.compile(r"layers\.(?P<layer>\d+)\.(?P<module>.+)\.weight")


def read_requested(snapshot: Path) -> Adapter:
    """The adapter of a snapshot. Raises StepFailed `adapter-unfit` if no engine can add it to a request."""
    adapter = read_adapter(snapshot)
    if not (adapter.added or adapter.replaced or adapter.experts):
        raise unfit("it holds no matrices")
    if adapter.replaced:
        raise not_by_request(f"{next(iter(adapter.replaced))} was trained whole")
    if adapter.experts:
        raise not_by_request(f"{next(iter(adapter.experts))} is of experts")
    for name, low_rank in adapter.added.items():
        if low_rank.magnitude is not None:
            raise not_by_request(f"{name} has a magnitude (DoRA)")
        if _MODULE.fullmatch(short_name(name)) is None:
            raise not_by_request(f"{name} belongs to no layer")
    return adapter


def by_layer(adapter: Adapter) -> Mapping[tuple[int, str], LowRank]:
    """What `read_requested` read, by the number of the layer and the module's name in it, `self_attn.q_proj`."""
    found: dict[tuple[int, str], LowRank] = {}
    for name, low_rank in adapter.added.items():
        match = _MODULE.fullmatch(short_name(name))
        assert match is not None
        found[int(match["layer"]), match["module"]] = low_rank
    return found


def rank(adapter: Adapter) -> int:
    """The largest rank of its matrices."""
    return max(low_rank.a.shape[0] for low_rank in adapter.added.values())


def scaled(low_rank: LowRank) -> Floats:
    """The second matrix, [rows, rank], with the scale in it: engines know one scale for all modules, or none."""
    return low_rank.scale * low_rank.b.astype("float32")
