"""Promote: move the public name, here and on every live node. Rolling back is the same with an older number."""

from __future__ import annotations

from infra.errors import ArtifactDamaged, TritonError, UsageError
from tasks.garbage.keep import note_use
from tasks.steps.nodes import reports
from tasks.store.artifact import ArtifactRef, ArtifactStore
from tasks.targets.target import Target


def promote(target: Target, model: str, release: int, *, timeout_s: float = 120.0) -> None:
    """Make `release` public and wait until every live node answers with it.

    Raises UsageError for a release that never passed its gates or that the store cannot give to a node any more,
    TritonError where a node does not follow.
    """
    result = target.result(model, release)
    if result is None or result.state != "passed":
        raise UsageError(
            f"{model} release {release} on '{target.name}' has not passed its gates",
            hint=f"`enginehouse releases {model}` shows which releases have",
            code="release-not-passed",
        )
    _require_in_store(target, model, release)
    target.move(model, lambda current: current.promoted(release))
    for nodes, is_late in reports(target, timeout_s):
        behind = [node for node in nodes if model not in node.models or node.models[model].public != release]
        if not behind:
            return
        if target.current(model)[0].public != release:
            return  # a later promotion or rollback counts now
        if is_late:
            errors = "; ".join(
                f"{node.node}: {node.models[model].error or 'still on another release'}"
                if model in node.models
                else node.node
                for node in behind
            )
            raise TritonError(
                f"{model} release {release} is wanted on '{target.name}', and nodes lag behind: {errors}",
                hint="the nodes go on trying; see their logs",
                code="node-behind",
                retryable=True,
            )


def _require_in_store(target: Target, model: str, release: int) -> None:
    """Raise where a node could not bring the release any more: its artifacts were collected, or damaged since."""
    store = ArtifactStore(target.bucket)
    repository = ArtifactRef.parse(target.intent(model, release).repository)
    note_use(target.bucket, model, (repository,), "")  # its engine with it: neither is collected from here on
    try:
        engine = store.need(repository).manifest.inputs["engine"]
        store.need(ArtifactRef.parse(engine))
    except ArtifactDamaged as error:
        raise UsageError(
            f"{model} release {release} on '{target.name}' cannot be loaded any more: {error.message}",
            hint=f"`enginehouse releases {model}` has its recipe, to rebuild it with; "
            f"`enginehouse pin {model}@N` keeps a release from being collected",
            code="release-not-in-store",
        ) from error


def roll_back(target: Target, model: str, to: int | None = None) -> int:
    """Promote release `to`, or the previous one; returns its number. Raises UsageError where there is none."""
    current, _ = target.current(model)
    release = current.previous if to is None else to
    if release is None:
        raise UsageError(
            f"{model} has no previous release on '{target.name}'",
            hint=f"`enginehouse releases {model}` lists what `--to` takes",
            code="release-missing",
        )
    target.intent(model, release)
    promote(target, model, release)
    return release
