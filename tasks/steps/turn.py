"""Whose turn it is to roll a model out: one run's at a time, whichever targets it goes to."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from infra.s3.bucket import Bucket
from tasks.store.lease import LONGEST_WORK_SECONDS, held


@contextmanager
def turn(bucket: Bucket, target: str, model: str, flow_run: str, seconds: float) -> Generator[None]:
    """The turn of one run to roll a model out to a target, from its candidate to its promotion.

    Others that roll out the model wait for it, on whichever target, as long as the run renews its leases of `seconds`.
    So all candidates that the one who has the turn finds are of runs that died.
    """
    with model_turn(bucket, model, flow_run, seconds), target_turn(bucket, target, model, flow_run, seconds):
        yield


def model_turn(
    bucket: Bucket,
    model: str,
    holder: str,
    seconds: float,
    *,
    wait_s: float = LONGEST_WORK_SECONDS,
    waiting: Callable[[str], None] = lambda holder: None,
) -> AbstractContextManager[None]:
    """The part of `turn` that is about the model on all targets. It comes first.

    Raises StoreError `lease-held` if others have it for more than `wait_s` seconds, and tells `waiting` who they are;
    so does `target_turn`.
    """
    return held(bucket, _model_key(model), holder, seconds, wait_seconds=wait_s, waiting=waiting)


def target_turn(
    bucket: Bucket,
    target: str,
    model: str,
    holder: str,
    seconds: float,
    *,
    wait_s: float = LONGEST_WORK_SECONDS,
    waiting: Callable[[str], None] = lambda holder: None,
) -> AbstractContextManager[None]:
    """The part of `turn` that is about one target. It is enough for who ends what lies on that target.

    A worker of before takes this part alone.
    """
    return held(bucket, turn_key(target, model), holder, seconds, wait_seconds=wait_s, waiting=waiting)


def turn_key(target: str, model: str) -> str:
    """The identity of the lease of one target."""
    return f"roll-out-{target}-{model}"


def _model_key(model: str) -> str:
    # The name of a target is no empty one, so this is the key of none.
    return f"roll-out--{model}"
