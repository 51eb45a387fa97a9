"""Whether the nodes of a target have room for a release, by what they report now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.kinds.protocol import EngineKind
from tasks.models.spec import Model
from tasks.steps.node_fit import node_memory
from tasks.targets.node_report import NodeReport
from tasks.trtllm.fits import Found, Planned, differences


@dataclass(frozen=True)
class NodeRoom:
    """Bytes of memory: of the fullest GPU that the release takes, or of the host.

    `beside`: it holds the release beside what it serves; `alone`: only in the live one's place (--recreate); `none`:
    not at all; `unfit`: it is another machine than the recipe's, as `why` says; `unknown`: nobody knows what is needed.
    """

    target: str
    node: str
    verdict: Literal["beside", "alone", "none", "unfit", "unknown"]
    total: int = 0
    free: int = 0
    why: str = ""


def rooms(
    model: Model, kind: EngineKind, needed: int | None, target: str, nodes: Sequence[NodeReport]
) -> Iterator[NodeRoom]:
    """What each node says of a release that needs so many bytes on each of its GPUs, or of the host."""
    gpus, runtime = kind.gpus(), model.recipe.planned_runtime
    for node in nodes:
        if gpus:
            planned = Planned(
                tensorrt_llm="" if runtime is None else runtime.tensorrt_llm,
                architecture="" if runtime is None else runtime.arch,
                gpus=gpus,
            )
            if why := differences(planned, Found.on_node(node.machine)):
                yield NodeRoom(target, node.node, "unfit", why="; ".join(why))
                continue
        total, free = node_memory(node, gpus)
        yield NodeRoom(target, node.node, _verdict(needed, total, free), total, free)


def _verdict(needed: int | None, total: int, free: int) -> Literal["beside", "alone", "none", "unknown"]:
    if needed is None:
        return "unknown"
    if needed <= free:
        return "beside"
    return "alone" if needed <= total else "none"
