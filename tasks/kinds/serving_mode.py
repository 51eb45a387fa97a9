"""How the Triton of a node must run for a release: in one process, with spawned workers, or as one process a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.version import InvalidVersion, Version

# The backend spawns workers from 0.9 on, and is gone with 1.3. Source: launch_triton_server.py of the backend's v0.8.0
# and v0.9.0, and the release notes of 1.3.
_FIRST_ORCHESTRATOR = (0, 9)
_WITHOUT_ENGINES = (1, 3)


@dataclass(frozen=True)
class ServingMode:
    """`single`: one process. `orchestrator`: its backend spawns a worker a GPU. `leader`: one process a rank.

    `why` says it to people. `ranks` counts the processes that a release in mode `leader` has for itself.
    """

    mode: Literal["single", "orchestrator", "leader"]
    why: str
    ranks: int = 0


def engine_serving_mode(version: Version, world_size: int) -> ServingMode:
    """The mode of an engine over `world_size` GPUs in the C++ backend of TensorRT-LLM `version`."""
    if world_size == 1:
        return ServingMode("single", "one GPU")
    if version.release >= _FIRST_ORCHESTRATOR:
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
    """How many of a node's `gpus` its Triton spawns workers on: all, or 0 where it need not, or cannot.

    `tensorrt_llm` is the node's version, empty if it has none.
    """
    try:
        release = Version(tensorrt_llm).release
    except InvalidVersion:
        return 0
    return gpus if gpus > 1 and _FIRST_ORCHESTRATOR <= release < _WITHOUT_ENGINES else 0
