"""Whether a rollout may begin now, by the model's file."""

from __future__ import annotations

from datetime import UTC, datetime

from infra.errors import EnginehouseError
from tasks.models.spec import Model


def require_open(model: Model, target: str, now: datetime | None = None) -> None:
    """Raise EnginehouseError `frozen` or `outside-hours` where the file keeps a rollout from beginning now."""
    closed = model.rollout.closed(now or datetime.now(UTC))
    if closed is None:
        return
    why = "the file is frozen" if closed.code == "frozen" else "it is outside of the hours of the file"
    then = "" if closed.opens is None else f" until {closed.opens.isoformat(timespec='minutes')}"
    raise EnginehouseError(
        f"{model.name} is not rolled out to '{target}' now: {why} (`rollout`){then}",
        hint="what was built is in the store, so the same command is quick then; "
        f"`enginehouse rollback {model.name}` is always allowed",
        code=closed.code,
    )
