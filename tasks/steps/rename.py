"""Give a served model another name: clients are answered by the new one before the old one goes.

Nothing is built or copied. Artifacts know no names, so the first release of the new name is the same repository as the
release that is public by the old one, and its record says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.garbage.keep import note_use
from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.recipe import RECIPES
from tasks.models.spec import Model
from tasks.steps.node_fit import require_beside, require_readable
from tasks.steps.nodes import live_nodes
from tasks.steps.promote import promote
from tasks.steps.roll_out import wait_until_ready
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.references import ReleaseRef
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

_READY_SECONDS = 900.0


@dataclass(frozen=True)
class Adopted:
    """Release `release` of the new name is public on `target`, of the same bytes as release `former` of the old one."""

    target: str
    former: int
    release: int


def require_adoptable(bucket: Bucket, former: str, name: str, targets: Sequence[str]) -> None:
    """Raise UsageError where the public release of `former` cannot get the new name, before anything is changed.

    `model-exists` if a release of that name is public that did not come from there; `rename-aliases` if the release has
    aliases, which are one model's alone at a time.
    """
    for target in (Target(bucket, each) for each in targets):
        live, other = target.live(former), target.live(name)
        if other is not None and other.former.partition("@")[0] != former:
            raise UsageError(
                f"{name} is a model of its own on '{target.name}': its release {other.release} is public",
                hint="take another name, or retire that model first",
                code="model-exists",
            )
        if live is not None and live.aliases and other is None:
            raise UsageError(
                f"{former} has the aliases {', '.join(live.aliases)} on '{target.name}', and two cannot share them",
                hint="take `serving.aliases` out of its file and rebuild it; put them back once it is renamed",
                code="rename-aliases",
            )


def adopt(
    target: Target, former: str, model: Model, *, flow_run: str = "", timeout_s: float = _READY_SECONDS
) -> Adopted | None:
    """Have the name of `model` answer with the release that is public by the name `former`, which goes on answering.

    The caller has the leases of both (`retire.alone`). None if nothing is public by the old name. The same call goes on
    wherever a killed one stopped.

    Raises EnginehouseError `memory-short` if a node does not hold it twice, GateRefused if one cannot load it, and as
    `promote` does. The old name is left alone then.
    """
    live, name = target.live(former), model.name
    if live is None:
        return None
    origin = f"{former}@{live.release}"
    current, _ = target.current(name)
    known = [(intent, result) for intent, result in target.history(name, lambda intent: intent.former == origin)]
    release = next((intent.release for intent, _ in known if intent.release == current.public), None)
    if release is None:
        begun = [intent.release for intent, result in known if result is None or result.may_be_public]
        release = max(begun) if begun else _reserve(target, live, name, origin, flow_run)
        _require_room(target, live, model, release in current.candidates)
        target.move(name, lambda current: current.with_candidate(release))
        wait_until_ready(target, name, release, timeout_s)
        reason = f"the same bytes are live as {ReleaseRef(target.name, former, live.release)}"
        target.conclude(name, Result(release=release, state="passed", reason=reason))
    promote(target, name, release, flow_run=flow_run, reason=f"renamed: {former} until now")
    return Adopted(target.name, live.release, release)


def _reserve(target: Target, live: Intent, name: str, origin: str, flow_run: str) -> int:
    note_use(target.bucket, name, (live.artifact,), flow_run)
    about: dict[str, JsonValue] = {"model": name, "former": origin, "flow_run": flow_run}
    about |= {"changes": [], "lost": {}, "live": None}  # nothing was live by this name
    fresh = live.model_dump(mode="json", exclude={"created", "release", "traceparent", *about})
    return target.reserve(name, lambda number: Intent.model_validate({**fresh, **about, "release": number})).release


def _require_room(target: Target, live: Intent, model: Model, is_loaded: bool) -> None:
    """Raise as `adopt` does, before a node loads what it does not hold."""
    store, nodes = ArtifactStore(target.bucket), live_nodes(target)
    repository = store.need(live.artifact)
    engine = store.need(ArtifactRef.parse(repository.manifest.inputs["engine"]))
    require_readable(target.name, nodes, live.schema_version, repository, engine)
    if not is_loaded:
        recipe = RECIPES[str(live.recipe["kind"])].model_validate(live.recipe)
        kind = engine_kind(model.model_copy(update={"recipe": recipe}))
        require_beside(kind, model.name, engine, repository, store.read(engine, LIMITS_FILE), nodes)
