"""Promote a release: move the public name to it on every live node. Rolling back promotes an earlier release."""

from __future__ import annotations

from collections.abc import Callable

from infra.errors import ArtifactDamaged, TritonError, UsageError
from tasks.garbage.keep import note_use
from tasks.steps.nodes import reports
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.current import Current
from tasks.targets.target import Target


def _never() -> bool:
    return False


def promote(
    target: Target, model: str, release: int, *, unless: Callable[[], bool] = _never, timeout_s: float = 120.0
) -> bool:
    """Make `release` public, and wait until every live node answers with it.

    `unless` is asked at the moment of the move. If it says yes, the public name stays, the release is no candidate any
    more, and False is returned.

    Raises UsageError `release-not-passed` if it never passed its gates, UsageError `release-not-in-store` if a node
    could not bring it any more, and TritonError `node-behind` if a node does not follow within `timeout_s` seconds.
    """
    result = target.result(model, release)
    if result is None or result.state != "passed":
        raise UsageError(
            f"{model} release {release} on '{target.name}' has not passed its gates",
            hint=f"`enginehouse releases {model}` shows which releases have",
            code="release-not-passed",
        )
    _require_in_store(target, model, release)

    def change(current: Current) -> Current:
        return current.without_candidate(release) if unless() else current.promoted(release)

    if target.move(model, change).public != release:
        return False
    _wait_until_public(target, model, release, timeout_s)
    return True


def _wait_until_public(target: Target, model: str, release: int, timeout_s: float) -> None:
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
                hint="the nodes keep trying; their logs say why they fail",
                code="node-behind",
                retryable=True,
            )


def _require_in_store(target: Target, model: str, release: int) -> None:
    """Raises UsageError if the artifacts of the release were collected or are damaged: no node could bring them."""
    store = ArtifactStore(target.bucket)
    repository = ArtifactRef.parse(target.intent(model, release).repository)
    note_use(target.bucket, model, (repository,), "")  # with its engine: neither is collected from now on
    try:
        engine = store.need(repository).manifest.inputs["engine"]
        store.need(ArtifactRef.parse(engine))
    except ArtifactDamaged as error:
        raise UsageError(
            f"{model} release {release} on '{target.name}' cannot be loaded any more: {error.message}",
            hint=f"`enginehouse releases {model}` shows its recipe, to rebuild it with; "
            f"`enginehouse pin {model}@N` keeps a release from being collected",
            code="release-not-in-store",
        ) from error


def roll_back(target: Target, model: str, to: int | None = None) -> int:
    """Promote release `to`, or the previous one. Returns its number. Raises UsageError, and as `promote` does."""
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
