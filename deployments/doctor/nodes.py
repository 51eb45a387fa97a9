"""What the live nodes of this machine's target report: releases that failed, names that lag behind, old records."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, notice, wrong
from deployments.doctor.store import bucket_of
from infra.settings import Settings
from infra.triton.weakness import weakness
from tasks.steps.nodes import live_nodes
from tasks.targets.node_report import NodeReport, RecordVersions
from tasks.targets.target import Target


def _look(settings: Settings) -> Iterator[Finding]:
    for node in live_nodes(Target(bucket_of(settings), settings.target)):
        yield from of_node(node)


def of_node(node: NodeReport) -> Iterator[Finding]:
    who = f"node {node.node} of '{node.target}'"
    if node.error:
        yield wrong(
            "node-error", f"{who}: {node.error}", "read its log; `enginehouse status` names that of the stack's"
        )
    ours = RecordVersions()
    if any(getattr(node.reads, name) < getattr(ours, name) for name in RecordVersions.model_fields):
        what = f"{who} reads older records than this machine writes"
        yield wrong("node-older", what, "update Enginehouse there, and start its `enginehouse node` anew")
    if known := weakness(node.machine.triton):
        yield notice("triton-weak", f"{who}: {known}", "run it in an image of release 25.07 or later")
    for name, model in node.models.items():
        for number, release in model.releases.items():
            if release.state == "failed":
                what = f"{who}: {name} release {number} failed to load: {release.error}"
                yield wrong("release-failed", what, release.hint or f"enginehouse rebuild {name}")
        if model.error:
            what = f"{who}: {name} does not answer with the release that it should: {model.error}"
            yield wrong("node-behind", what, f"enginehouse rollback {name}, or enginehouse rebuild {name}")
    ready = sum(model.public is not None for model in node.models.values())
    free = node.memory_available_bytes / 2**30
    yield fine(f"{who}: {ready} of {len(node.models)} models answer, {free:.0f} GiB of memory are free")


CHECK = Check("nodes", "the live nodes of ENGINEHOUSE_TARGET, as they report", _look, within_s=45, needs="store")
