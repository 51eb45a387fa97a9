"""What a node reports of itself: its machine, and the state of every release on it.

targets/TARGET/nodes/NODE.json       written by that node alone, whenever something changed and as a sign of life
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from tasks.store.record import Record

REPORT_SECONDS = 5.0
"""A node writes its report at least this often."""
NODE_LIFETIME_SECONDS = 4 * REPORT_SECONDS
"""A node whose report is older, by the store's clock, is not waited for: four reports in a row did not come."""


def _now() -> datetime:
    return datetime.now(UTC)


class ReleaseReport(Record):
    state: Literal["loading", "ready", "failed", "unloading"]
    error: str = ""
    hint: str = ""
    """What to do about the error, where that is known."""
    starts: int = 0
    """How often this node has loaded the release since it began to run."""


class ModelReport(Record):
    public: int | None
    """The release that the public name answers with on this node."""
    error: str = ""
    releases: dict[int, ReleaseReport] = Field(default_factory=dict[int, ReleaseReport])


class NodeGpu(Record):
    """One GPU that a node's Triton sees. Sizes are bytes, 0 where the GPU shares the host's memory."""

    product: str
    architecture: str
    memory_bytes: int
    free_bytes: int


class Machine(Record):
    """What a node runs on and with. Versions are empty where its Triton is not that of NVIDIA's image."""

    gpus: tuple[NodeGpu, ...] = ()
    """In the order in which CUDA numbers them."""
    gpu_problem: str = ""
    """Why there is no GPU; empty where there is one."""
    driver: str = ""
    tensorrt_llm: str = ""
    tensorrt: str = ""
    container: str = ""
    """Digest of the image."""
    groups: bool = False
    """Whether it can start a group of servers, a process a rank, for one engine."""


class NodeReport(Record):
    node: str
    target: str
    http: str
    grpc: str
    triton_pid: int
    memory_total_bytes: int
    memory_available_bytes: int
    machine: Machine = Machine()
    models: dict[str, ModelReport] = Field(default_factory=dict[str, ModelReport])
    error: str = ""
    written: datetime = Field(default_factory=_now)
