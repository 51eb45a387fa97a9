"""How a node's Triton must run for a release: in one process, with spawned workers, or as one process a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.version import InvalidVersion, Version

from tasks.trtllm.releases import in_span, without_engines

# The first release whose backend spawns workers. Source: launch_triton_server.py of the backend's v0.8.0 and v0.9.0.
_FIRST_ORCHESTRATOR = "0.9"


@dataclass(frozen=True)
class ServingMode:
    """`single`: one process. `orchestrator`: its backend spawns a worker a GPU. `leader`: one process a rank.

    `why` is the reason, for people. `ranks` counts the processes of a release in mode `leader`; 0 in other modes.
    """

    mode: Literal["single", "orchestrator", "leader"]
    why: str
    ranks: int = 0


def engine_serving_mode(version: Version, world_size: int) -> ServingMode:
    """The mode of an engine over `world_size` GPUs in the C++ backend of TensorRT-LLM `version`."""
    if world_size == 1:
        return ServingMode("single", "one GPU")
    if in_span(version, _FIRST_ORCHESTRATOR):
        return ServingMode(
            "orchestrator",
            f"{world_size} GPUs: the backend spawns a worker for each, so a candidate can lie beside the live release",
        )
    return ServingMode(
        "leader",
        f"{world_size} GPUs: TensorRT-LLM {version} has one Triton process a rank, and ranks above 0 take no control "
        "requests. So a node starts a group of servers for the engine, beside its own Triton, and ends it with the "
        "release",
        world_size,
    )


def orchestrated_gpus(tensorrt_llm: str, gpus: int) -> int:
    """How many of a node's `gpus` its Triton spawns workers on: all, or 0 if it needs no workers or cannot spawn any.

    `tensorrt_llm` is the node's version, empty if it has none.
    """
    try:
        version = Version(tensorrt_llm)
    except InvalidVersion:
        return 0
    spawns = in_span(version, _FIRST_ORCHESTRATOR) and not without_engines(version)
    return gpus if gpus > 1 and spawns else 0
