"""The live nodes of a target, and waiting for what they report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from infra.errors import TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.store.names import NODES, is_node
from tasks.targets.node_report import GONE_SECONDS, NodeReport
from tasks.targets.target import Target
from tasks.targets.target import targets as all_targets

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


def require_nodes(targets: Iterable[Target]) -> list[str]:
    """Raises UsageError `target-without-node` for a target that no node has reported from within a day.

    A build for it would be for nothing. Returns a line for each target whose nodes are all silent now: they may be back
    when the build is done.
    """
    silent: list[str] = []
    for target in targets:
        ages = _ages(target)
        if not any(age <= GONE_SECONDS for age in ages):
            raise UsageError(
                f"target '{target.name}' has no node: none has reported from there within a day",
                hint=f"targets with nodes: {', '.join(_with_nodes(target.bucket)) or 'none'}. Start a node there with "
                f"ENGINEHOUSE_TARGET={target.name}, or build without a rollout: --until upload",
                code="target-without-node",
            )
        if min(ages) > target.node_lifetime_s:
            silent.append(f"target '{target.name}': all its nodes are silent, the last one for {min(ages):.0f} s")
    return silent


def _ages(target: Target) -> list[float]:
    """Seconds since the last report of each node that ever was there."""
    start = f"{target.prefix}{NODES}/"
    entries = target.bucket.list(start)
    return [entry.age for entry in entries if is_node(entry.key.removeprefix(start).removesuffix(".json"))]


def _with_nodes(bucket: Bucket) -> list[str]:
    return [target.name for target in all_targets(bucket) if any(age <= GONE_SECONDS for age in _ages(target))]


def reports(target: Target, timeout_s: float) -> Iterator[tuple[list[NodeReport], bool]]:
    """What the live nodes report, again and again, and whether `timeout_s` seconds are over.

    It never ends by itself. Raises as `live_nodes` does.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        yield live_nodes(target), time.monotonic() > deadline
        time.sleep(_POLL_SECONDS)


def wait_until_public(
    target: Target, model: str, release: int, timeout_s: float, say: Callable[[str], None] = lambda _: None
) -> None:
    """Wait until every live node answers by the public name with `release`, or until another one is wanted.

    `say` is told which nodes it waits for and why, whenever that changes.
    Raises TritonError `node-behind` (retryable) after `timeout_s` seconds, and as `live_nodes` does.
    """
    told = ""
    for nodes, is_late in reports(target, timeout_s):
        behind = {node.node: why for node in nodes if (why := _why_not_public(node, model, release))}
        if not behind or target.current(model)[0].public != release:
            return
        words = "; ".join(f"{node}: {why}" for node, why in behind.items())
        if is_late:
            raise TritonError(
                f"{model} release {release} is wanted on '{target.name}', and nodes lag behind: {words}",
                hint="the nodes keep trying; their logs say why they fail",
                code="node-behind",
                retryable=True,
            )
        if words != told:
            say(words)
        told = words


def _why_not_public(node: NodeReport, model: str, release: int) -> str:
    """Why a node does not answer with `release`; empty if it does."""
    known = node.models.get(model)
    if known is None:
        return "it does not know the model yet"
    held = known.releases.get(release)
    if known.public != release:
        return known.error or (held.error if held is not None else "") or "still on another release"
    if held is None or held.state != "ready":
        return (held.error if held is not None else "") or "not ready"
    return ""
