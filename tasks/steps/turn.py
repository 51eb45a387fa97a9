"""Whose turn it is to roll a model out: one run's at a time, whichever targets it goes to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from infra.s3.bucket import Bucket
from tasks.store.lease import held


@contextmanager
def turn(bucket: Bucket, target: str, model: str, flow_run: str, seconds: float) -> Generator[None]:
    """The turn of one run to roll a model out to a target, from its candidate to its promotion.

    Others that roll out the model wait for it, on whichever target, as long as the run renews its leases of `seconds`.
    So all candidates that the one who has the turn finds are of runs that died.
    """
    with held(bucket, model_key(model), flow_run, seconds), held(bucket, turn_key(target, model), flow_run, seconds):
        yield


def model_key(model: str) -> str:
    """The identity of the lease of a model on all targets. It is taken before those of targets."""
    # The name of a target is no empty one, so this is the key of none.
    return turn_key("", model)


def turn_key(target: str, model: str) -> str:
    """The identity of the lease of one target. It is enough for who ends what lies on that target.

    A worker of before takes this one alone.
    """
    return f"roll-out-{target}-{model}"
