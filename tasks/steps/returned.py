"""What a watch has given back is not promoted again, as long as the same is asked of the same bytes."""

from __future__ import annotations

from infra.errors import GateRefused
from tasks.models.spec import Model
from tasks.models.watch import WatchSpec
from tasks.store.artifact import ArtifactRef
from tasks.targets.target import Target
from tasks.targets.watch_record import WatchRecords


def require_not_returned(target: Target, model: Model, repository: ArtifactRef, digest: str) -> None:
    """Raises GateRefused `watch-returned` if the watch has given back a release of these bytes, the last it was over.

    A model's file that asks for another watch, or for none, has it tried again.
    """
    if model.watch is None:
        return
    records = WatchRecords(target, model.name)
    last = records.last()
    # As it is read now: a record of before says nothing of fields that are newer.
    if not last.release or WatchSpec.model_validate(last.asked) != model.watch:
        return
    outcome = records.outcome(last.release)
    if outcome is None or outcome.state != "returned":
        return
    known = target.intent(model.name, last.release)
    if known.artifact == repository and known.digest == digest:
        raise GateRefused(
            f"{model.name} release {last.release} on '{target.name}' has the same bytes, and its watch gave it back: "
            f"{outcome.reason}",
            hint=f"`enginehouse rollback {model.name} --to {last.release}` makes it public all the same; with another "
            "section `watch` in the model's file, a rebuild tries it again",
            code="watch-returned",
        )
