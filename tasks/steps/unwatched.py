"""Watches whose run died: nobody looks at a release that was just promoted."""

from __future__ import annotations

from pydantic import ValidationError

from infra.errors import EnginehouseError, GateRefused
from infra.s3.bucket import Bucket
from tasks.steps.abandoned import nobody_has
from tasks.steps.watch import look_once, watch_key
from tasks.store.lease import Watch, held
from tasks.targets.target import Target, targets
from tasks.targets.watch_record import WatchRecords


def look_at_unwatched(bucket: Bucket, flow_run: str, lease_seconds: float) -> list[str]:
    """Look once at each release whose watch is on and has nobody, on every target, and say what came of it.

    What nodes have counted meanwhile is all seen now; no test prompts are sent. A record that cannot be read costs its
    own model. Raises StoreError.
    """
    lines: list[str] = []
    for target in targets(bucket):
        for model in target.wanted():
            try:
                lines += _look(target, model, flow_run, lease_seconds)
            except (EnginehouseError, ValidationError) as error:
                lines.append(f"the watch of {model} on '{target.name}' cannot be looked at: {error}")
    return lines


def _look(target: Target, model: str, flow_run: str, lease_seconds: float) -> list[str]:
    last = WatchRecords(target, model).last()
    if not last.release or last.over:
        return []
    if not nobody_has(Watch(target.bucket, watch_key(target.name, model), lease_seconds)):
        return []
    with held(target.bucket, watch_key(target.name, model), flow_run, lease_seconds):
        try:
            outcome = look_once(target, model, flow_run)
        except GateRefused as error:
            return [error.message]
    return [] if outcome is None else [f"{model} release {last.release} on '{target.name}': {outcome.state}"]
