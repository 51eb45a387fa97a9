"""What a node reports: its machine, and the state of every release on it.

targets/TARGET/nodes/NODE.json       written by that node alone: when something changed, and as a heartbeat
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from tasks.store.artifact import Manifest
from tasks.store.names import Segment
from tasks.store.record import Record
from tasks.targets.current import Current
from tasks.targets.observed import NodeObserved
from tasks.targets.release import Intent

REPORT_SECONDS = 5.0
"""A node writes its report at least this often, changed or not."""
NODE_LIFETIME_SECONDS = 4 * REPORT_SECONDS
"""A node whose report is older, by the store's clock, is not waited for: four reports in a row did not come."""
GONE_SECONDS = 24 * 3600
"""A node that was silent for so long was taken away; until then it is missing."""


def _now() -> datetime:
    return datetime.now(UTC)


class ReleaseReport(Record):
    """The state of one release on a node."""

    state: Literal["loading", "ready", "failed", "unloading"]
    error: str = ""
    hint: str = ""
    """What to do about the error, if that is known."""
    starts: int = 0
    """How often this node has loaded the release since the node started."""
    memory_bytes: int = 0
    """Memory of their own of the processes that run it, but not what they map from files, or share. 0: unknown."""


class ModelReport(Record):
    """The state of one model on a node."""

    public: int | None
    """The release that the public name answers with on this node, and its aliases."""
    aliases: tuple[Segment, ...] = ()
    """The further public names that the wanted release asks for."""
    error: str = ""
    """Why that is not the wanted one."""
    releases: dict[int, ReleaseReport] = Field(default_factory=dict[int, ReleaseReport])


class NodeGpu(Record):
    """One GPU that a node's Triton sees. Sizes are bytes; 0 if the GPU shares the host's memory."""

    product: str
    architecture: str
    memory_bytes: int
    free_bytes: int


class Machine(Record):
    """What a node runs on and with. Versions are empty unless its Triton is that of NVIDIA's image."""

    gpus: tuple[NodeGpu, ...] = ()
    """In the order in which CUDA numbers them."""
    gpu_problem: str = ""
    """Why there is no GPU; empty if there is one."""
    driver: str = ""
    triton: str = ""
    """The release of NVIDIA's image that its Triton is from, also where it is the wheel's."""
    tensorrt_llm: str = ""
    tensorrt: str = ""
    container: str = ""
    """Digest of the container image."""
    groups: bool = False
    """Whether it can start a group of servers for one engine, with one process for each rank."""


class RecordVersions(Record):
    """The newest version of each record that a node reads."""

    manifest: int = Manifest.newest
    intent: int = Intent.newest
    current: int = Current.newest


READ_BEFORE = RecordVersions(manifest=1, intent=2, current=1)
"""What nodes read that do not say it yet."""


class NodeReport(Record):
    """Everything that a node reports. `http` and `grpc` are the addresses of its Triton; memory is the host's."""

    node: str
    target: str
    http: str
    grpc: str
    triton_pid: int
    memory_total_bytes: int
    memory_available_bytes: int
    machine: Machine = Machine()
    reads: RecordVersions = RecordVersions()
    models: dict[str, ModelReport] = Field(default_factory=dict[str, ModelReport])
    error: str = ""
    instance: str = ""
    """The same for each start of this node, and another for another node of its name. Empty in older reports."""
    health: str = ""
    """The URL that says whether each model answers; empty if the node has none."""
    observed: NodeObserved = NodeObserved()
    """What its clients saw of each release. Older reports have none."""
    written: datetime = Field(default_factory=_now)

    @classmethod
    def read(cls, body: bytes) -> NodeReport:
        """The report that a node has written, maybe an earlier one, which does not say what it reads."""
        report = cls.model_validate_json(body)
        return report if "reads" in report.model_fields_set else report.model_copy(update={"reads": READ_BEFORE})
