"""What the next rebuild would change against the live release: fields of the model, and artifacts that come out new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import JsonValue

from infra.s3.bucket import Bucket
from tasks.explain.staleness import in_todays_form
from tasks.explain.why import Difference, differences
from tasks.finetuned.records import with_newest
from tasks.models.overrides import in_image, override
from tasks.models.spec import Model
from tasks.sources.resolved import Access
from tasks.steps.plan import Plan
from tasks.steps.resolve import planned_for, resolve_weights, surveyed
from tasks.store.artifact import ArtifactRef, Kind, Manifest
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.inventory import in_parallel, read_manifest
from tasks.targets.changes import FieldChange, changes
from tasks.targets.release import Intent
from tasks.targets.target import Target
from tasks.trtllm.images import reported_image
from tasks.watch.record import followed_version
from tasks.watch.verdict import version_in_use

_TEXTS = 1
"""The version of an intent whose fields are texts: they cannot be compared one by one."""
_MADE_OF: Mapping[Kind, str] = {"repository": "engine", "engine": "checkpoint", "checkpoint": "snapshot"}
"""The role of what an artifact is made of first."""


@dataclass(frozen=True)
class Part:
    """An artifact of the live release beside the one that a rebuild takes. `changes` are those of its own step.

    `bytes` are those of the artifact that the store has: the new one, or else the live one. None if it has neither.
    """

    kind: Kind
    old: ArtifactRef | None
    new: ArtifactRef
    state: Literal["same", "in the store", "to make"]
    changes: tuple[Difference, ...]
    bytes: int | None

    def document(self) -> dict[str, JsonValue]:
        return {
            "kind": self.kind,
            "old": None if self.old is None else str(self.old),
            "new": str(self.new),
            "state": self.state,
            "bytes": self.bytes,
            "changes": [asdict(change) for change in self.changes],
        }


@dataclass(frozen=True)
class Upcoming:
    """A rebuild that nobody has begun, against release `live` of a target; None if none is live."""

    model: str
    target: str
    live: int | None
    fields: tuple[FieldChange, ...]
    """Of recipe, serving, adapters and source; empty if none is live, and for a release of the first records."""
    parts: tuple[Part, ...]

    @property
    def is_new(self) -> bool:
        """Whether a rebuild would make a release. The same repository with other aliases is one too."""
        return self.live is None or self.parts[-1].state != "same" or any(_is_of_release(each) for each in self.fields)

    def document(self) -> dict[str, JsonValue]:
        """What `enginehouse diff --json` prints."""
        return {
            "model": self.model,
            "target": self.target,
            "live": self.live,
            "makes_release": self.is_new,
            "fields": [change.model_dump(mode="json") for change in self.fields],
            "artifacts": [part.document() for part in self.parts],
        }


def _is_of_release(change: FieldChange) -> bool:
    return change.field == "serving.aliases"


def upcoming(target: Target, entry: Model, access: Access) -> Upcoming:
    """Compare what a rebuild of the catalogue's `entry` would make now with what is live on the target.

    It asks the source what it has, and reads its small files alone. Raises as `resolve_weights` and `surveyed` do, and
    UsageError if the rebuild could not begin.
    """
    bucket, live = target.bucket, target.live(entry.name)
    asked = _asked(bucket, entry)
    weights = surveyed(asked, resolve_weights(asked, access), access)
    model = in_image(planned_for(asked, weights), reported_image(bucket, asked.recipe.planned_runtime))
    parts = tuple(_parts(bucket, weights.plan(model), {} if live is None else _made_before(bucket, live.artifact)))
    fields = () if live is None or live.schema_version == _TEXTS else changes(_of_release(live), _of_model(model))
    return Upcoming(entry.name, target.name, None if live is None else live.release, fields, parts)


def _asked(bucket: Bucket, entry: Model) -> Model:
    """The model with the weights and the version that a rebuild takes."""
    newest, _ = with_newest(bucket, entry)
    if newest.updates.policy == "pinned":
        return override(newest).model
    return override(newest, tensorrt_llm=version_in_use(newest, followed_version(bucket, newest.name))).model


def _of_release(live: Intent) -> dict[str, JsonValue]:
    recipe, serving = in_todays_form(live)
    adapters: dict[str, JsonValue] = dict(live.adapters)
    return {"source": live.source, **recipe, "serving": dict(serving), "adapters": adapters}


def _of_model(model: Model) -> dict[str, JsonValue]:
    recipe, serving = (part.model_dump(mode="json") for part in (model.recipe, model.serving))
    return {"source": model.origin, **recipe, "serving": serving, "adapters": dict(model.adapters)}


def _made_before(bucket: Bucket, repository: ArtifactRef) -> dict[Kind, tuple[ArtifactRef, Manifest]]:
    """The live release's repository and what that is made of, as far as their manifests can be read."""
    found: dict[Kind, tuple[ArtifactRef, Manifest]] = {}
    ref: ArtifactRef | None = repository
    while ref is not None and (manifest := read_manifest(bucket, ref)) is not None:
        found[ref.kind] = (ref, manifest)
        below = manifest.inputs.get(_MADE_OF.get(ref.kind, ""))
        ref = None if below is None else ArtifactRef.parse(below)
    return found


def _parts(bucket: Bucket, plan: Plan, before: Mapping[Kind, tuple[ArtifactRef, Manifest]]) -> Iterator[Part]:
    """From the snapshot up to the repository."""
    identities: Mapping[Kind, Identity] = {
        "snapshot": plan.snapshot,
        "checkpoint": plan.checkpoint,
        "engine": plan.engine,
        "repository": plan.repository,
    }
    refs = {kind: ArtifactRef(kind, identity.digest) for kind, identity in identities.items()}
    there = dict(zip(refs, in_parallel(ArtifactStore(bucket).find, refs.values()), strict=True))
    for kind, identity in identities.items():
        ref, old = refs[kind], before.get(kind)
        if old is not None and old[0] == ref:
            yield Part(kind, ref, ref, "same", (), old[1].size)
            continue
        found, changed = there[kind], () if old is None else differences(old[1].identity, identity.document)
        size = found.manifest.size if found is not None else None if old is None else old[1].size
        state = "to make" if found is None else "in the store"
        yield Part(kind, None if old is None else old[0], ref, state, changed, size)
