"""Adapters that requests choose: nothing is merged, so an engine has to add them to what it computes.

Engines add the two small matrices of a module, and nothing else that PEFT knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from infra.errors import StepFailed
from tasks.lora.adapter import Adapter, AdapterConfig, LowRank, read_adapter
from tasks.lora.names import short_name
from tasks.lora.tensors import Floats, unfit

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


def check_requested(config: AdapterConfig, most: int | None = None) -> None:
    """The same by its config alone, before anything is built. A rank above `most` is refused too, None: any rank."""
    if config.modules_to_save:
        raise not_by_request(f"{', '.join(config.modules_to_save)} were trained whole")
    if config.use_dora:
        raise not_by_request("it is one of DoRA")
    if config.fan_in_fan_out:
        raise not_by_request("its matrices are transposed (fan_in_fan_out)")
    if config.target_parameters:
        raise not_by_request(f"it adds to parameters ({', '.join(config.target_parameters)})")
    largest = max((config.r, *(config.rank_pattern or {}).values()))
    if most is not None and largest > most:
        raise unfit(f"its rank is {largest}, and there is room for {most}", hint="raise recipe.lora.max_rank")


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


def not_by_request(what: str) -> StepFailed:
    """The error for an adapter that no engine adds to a request."""
    return unfit(what, hint="merge it into the weights: `adapter`")
