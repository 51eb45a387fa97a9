"""What became of a rebuild of the watch that left its candidates to a person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from infra.s3.bucket import Bucket
from tasks.steps.approve import told
from tasks.targets.approvals import Approvals, requested
from tasks.targets.target import Target
from tasks.watch.waves import RebuildRun


def decided(bucket: Bucket, targets: Iterable[str], model: str, run: RebuildRun) -> RebuildRun:
    """The run as it counts by the decisions on its candidates: `going` until each is promoted, `failed` if one is not.

    A person's decision starts another run, so this one's own state says nothing.
    """
    state: Literal["going", "completed"] = "completed"
    for target in (Target(bucket, name) for name in targets):
        candidates = target.current(model)[0].candidates
        for release in requested(target, model):
            approvals = Approvals(target, model, release)
            request, decision = approvals.request(), approvals.decision()
            if request is None or request.flow_run != run.id:
                continue
            if decision is not None and decision.state != "approved":
                return replace(run, state="failed", reason=f"release {release} on '{target.name}' {told(decision)}")
            if decision is None or release in candidates:
                state = "going"
    return replace(run, state=state)
