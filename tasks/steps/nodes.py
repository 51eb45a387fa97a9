"""The live nodes of a target, and waiting for what they report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from infra.errors import TritonError
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target

_POLL_SECONDS = 0.05
"""A promotion takes milliseconds. One look at a target is a listing and a read for each node."""


def live_nodes(target: Target) -> list[NodeReport]:
    """Reports of the live nodes, at least one. Raises TritonError, code `no-live-node` (retryable)."""
    nodes = target.nodes()
    require_some(target.name, nodes)
    return nodes


def require_some(target: str, nodes: Sequence[NodeReport]) -> None:
    """Raises TritonError, code `no-live-node` (retryable), if a target has no live node."""
    if not nodes:
        raise TritonError(
            f"target '{target}' has no live node",
            hint="start one: `enginehouse up` for the embedded stack, `enginehouse node` on any other machine",
            code="no-live-node",
            retryable=True,
        )


def reports(target: Target, timeout_s: float) -> Iterator[tuple[list[NodeReport], bool]]:
    """What the live nodes report, again and again, and whether `timeout_s` seconds are over.

    It never ends by itself. Raises as `live_nodes` does.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        yield live_nodes(target), time.monotonic() > deadline
        time.sleep(_POLL_SECONDS)
