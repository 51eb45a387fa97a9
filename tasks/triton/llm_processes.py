"""How many processes a release has between its clients and its engine, where the model's file leaves it to the node.

One Python process does all that a request takes beside the engine, on one core. At 256 streams it is behind; and of few
streams it does the work alone for less, since several wait for each other at Triton.
"""

from __future__ import annotations

import os
from pathlib import Path

from tasks.serving.tickets import HANDED_ON
from tasks.triton.protobuf import ModelConfig

_CORES, _STREAMS, _MOST = 2, 32, 8
"""One process for each so many cores of the node, and for each so many streams of the release, and never more.

Triton itself takes about as much of a core for a process of `llm` as that does. Measured with `tests/bench_layer.py`.
"""

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def chosen_processes(slots: int, cores: int) -> int:
    """Of a release that generates `slots` requests at once, on a node with so many cores."""
    return max(1, min(cores // _CORES, slots // _STREAMS, _MOST))


def is_chosen_by_node(llm: ModelConfig) -> bool:
    """Whether a release leaves it to the node. One that can have several processes and has one does not want one."""
    return llm.instance_group[0].count == 1 and any(tensor.name == HANDED_ON for tensor in llm.output)


def own_cores(limit: Path = _CGROUP_LIMIT) -> int:
    """Those that this process may use, and Triton beside it: what a container may use of them, whole ones."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = limit.read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return cores
