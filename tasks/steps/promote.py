"""Promote a release: move the public name to it on every live node. Rolling back promotes an earlier release."""

from __future__ import annotations

from infra.errors import ArtifactDamaged, TritonError, UsageError
from tasks.garbage.keep import note_use
from tasks.steps.node_fit import require_readable
from tasks.steps.nodes import reports
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.target import Target


def promote(target: Target, model: str, release: int, *, timeout_s: float = 120.0) -> None:
    """Make `release` public, and wait until every live node answers with it.

    Raises UsageError `release-not-passed` if it never passed its gates, UsageError `release-not-in-store` if a node
    could not bring it any more, EnginehouseError `node-older` if a live node does not read its records,
    and TritonError `node-behind` if a node does not follow within `timeout_s` seconds.
    """
    result = target.result(model, release)
    if result is None or result.state != "passed":
        raise UsageError(
            f"{model} release {release} on '{target.name}' has not passed its gates",
            hint=f"`enginehouse releases {model}` shows which releases have",
            code="release-not-passed",
        )
    _require_servable(target, model, release)
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
                hint="the nodes keep trying; their logs say why they fail",
                code="node-behind",
                retryable=True,
            )


def _require_servable(target: Target, model: str, release: int) -> None:
    """Raises as `promote` does, if no node could bring the artifacts of the release, or some node cannot read them."""
    store = ArtifactStore(target.bucket)
    intent = target.intent(model, release)
    repository = intent.artifact
    note_use(target.bucket, model, (repository,), "")  # with its engine: neither is collected from now on
    try:
        found = store.need(repository)
        engine = store.need(ArtifactRef.parse(found.manifest.inputs["engine"]))
    except ArtifactDamaged as error:
        raise UsageError(
            f"{model} release {release} on '{target.name}' cannot be loaded any more: {error.message}",
            hint=f"`enginehouse releases {model}` shows its recipe, to rebuild it with; "
            f"`enginehouse pin {model}@N` keeps a release from being collected",
            code="release-not-in-store",
        ) from error
    require_readable(target.name, target.nodes(), intent.schema_version, found, engine)


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
