"""Candidates whose run died: nobody decides on them, and one that is alone keeps the live release from answering."""

from __future__ import annotations

import time

from pydantic import ValidationError

from infra.errors import EnginehouseError
from infra.s3.bucket import Bucket
from tasks.steps.roll_out import give_up
from tasks.steps.turn import turn_key
from tasks.store.lease import Watch, held
from tasks.targets.approvals import open_requests
from tasks.targets.target import Target, targets
from tasks.targets.view import TargetView

FORGIVEN_SECONDS = 3600.0
"""A rebuild that is started again goes on with the candidate of the one that died, if it has not waited longer."""


def give_up_abandoned(
    bucket: Bucket, flow_run: str, lease_seconds: float, forgiven_s: float = FORGIVEN_SECONDS
) -> list[str]:
    """End candidates whose run died, on every target, and say which; a record that cannot be read costs its own model.

    At once where the candidate has taken the live release's place, else after `forgiven_s` seconds. Raises StoreError.
    """
    lines: list[str] = []
    for target in targets(bucket):
        for model in target.wanted():
            try:
                given_up = _give_up(target, model, flow_run, lease_seconds, forgiven_s)
            except (EnginehouseError, ValidationError) as error:
                lines.append(f"{model} on '{target.name}' cannot be looked at: {error}")
                continue
            lines += [f"{model} release {release} on '{target.name}' is given up: its run died" for release in given_up]
    return lines


def _give_up(target: Target, model: str, flow_run: str, lease_seconds: float, forgiven_s: float) -> tuple[int, ...]:
    if not target.current(model)[0].candidates:
        return ()
    view = target.view(model)
    left = {*view.current.candidates} - {*_waiting(target, view)}
    if not left:
        return ()
    waited = max(view.ages.get(release, 0.0) for release in left)
    if not view.current.alone and waited < forgiven_s:
        return ()
    lease = turn_key(target.name, model)
    if not nobody_has(Watch(target.bucket, lease, lease_seconds)):
        return ()
    with held(target.bucket, lease, flow_run, lease_seconds):
        view = target.view(model)
        return give_up(target, view, *_waiting(target, view))


def _waiting(target: Target, view: TargetView) -> tuple[int, ...]:
    """The candidates that wait for a person: however long, or as long as the model's file lets them."""
    concluded = (release for release in view.current.candidates if release in view.results)
    return (*view.undecided, *open_requests(target, view.model, concluded))


def nobody_has(lease: Watch) -> bool:
    """Whether the lease is free. Waits until its holder renews it, or it expires."""
    holder, first = lease.holder(), lease.etag
    while holder is not None and lease.etag == first:
        time.sleep(min(1.0, lease.seconds / 10))
        holder = lease.holder()
    return holder is None
