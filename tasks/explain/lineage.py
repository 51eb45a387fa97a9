"""Lineage: what an artifact or a release was made from, and what was made from it. Read from the store alone.

An artifact may be used by several models. So a question about a release reads what it was made from, and a question
about an artifact also what was noted beside it: what was made from it, and under which names that was released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from infra.s3.bucket import Bucket
from tasks.explain.standing import standings
from tasks.store.artifact import ArtifactRef, Kind, Manifest
from tasks.store.identity import Identity
from tasks.store.inventory import (
    KINDS,
    families_before,
    identities,
    in_parallel,
    manifest_at,
    manifests,
    recorded_artifact,
)
from tasks.store.notes import outputs, released_as
from tasks.targets.references import PublicName, Reference, ReleaseRef
from tasks.targets.release import Intent
from tasks.targets.target import Target, targets


@dataclass(frozen=True)
class Entity:
    """A source, an artifact, a release or a public name. `facts` are what a reader asks first, as texts by name."""

    kind: str
    name: str
    facts: Mapping[str, str]


_ORDER = ("artifact", "source", *KINDS, "release", "public")


def _place(entity: Entity) -> tuple[int, str, str]:
    return _ORDER.index(entity.kind), entity.facts.get("made", ""), entity.name


@dataclass
class Lineage:
    """A graph of entities by name. `inputs` says what each was made from; a source has none."""

    root: str
    model: str
    entities: dict[str, Entity] = field(default_factory=dict[str, Entity])
    inputs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _outputs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(self, entity: Entity, inputs: Iterable[str]) -> None:
        """Add an entity that the graph does not have yet, or a source once more."""
        self.entities[entity.name] = entity
        self.inputs[entity.name] = list(inputs)
        for name in self.inputs[entity.name]:
            self._outputs.setdefault(name, []).append(entity.name)

    def outputs(self, name: str) -> list[str]:
        """What was made from `name`, or uses it."""
        return self._outputs.get(name, [])

    def around_root(self) -> Lineage:
        """The part of the graph that the root was made from, or that was made from it, in the order of making."""
        kept = {self.root, *self.reached(up=True), *self.reached(up=False)}
        part = Lineage(self.root, self.model)
        for entity in sorted((self.entities[name] for name in kept), key=_place):
            part.add(entity, [other for other in self.inputs[entity.name] if other in kept])
        return part

    def reached(self, *, up: bool) -> set[str]:
        """The names of everything that the root was made from (`up`), or that was made from it."""
        reached: set[str] = set()
        waiting = [self.root]
        while waiting:
            name = waiting.pop()
            nearer = self.inputs.get(name, []) if up else self.outputs(name)
            waiting += [other for other in nearer if other not in reached]
            reached.update(nearer)
        return reached


def lineage(bucket: Bucket, reference: Reference) -> Lineage:
    """The lineage of what `reference` names, in both directions. Raises StoreError and FormatNewer."""
    if not isinstance(reference, ArtifactRef):
        found = _Reading(bucket, Lineage(str(reference), reference.model))
        for target in targets(bucket):
            found.add_releases(target, reference.model, lambda intent: True)
        above = found.graph.reached(up=True)
        found.add_what_they_were_made_from([ref for ref, name in found.names.items() if name in above])
        return found.whole()
    root = recorded_artifact(bucket, reference)
    place = reference if root is None else root.ref
    found = _Reading(bucket, Lineage(str(place), place.model if root is None else root.manifest.model))
    found.add_what_was_made_from(place)
    found.add_what_they_were_made_from([place])
    return found.whole()


@dataclass
class _Reading:
    """A graph while it is read. `names` has each artifact under the one name that it has in the graph."""

    bucket: Bucket
    graph: Lineage
    names: dict[ArtifactRef, str] = field(default_factory=dict[ArtifactRef, str])

    def name_of(self, ref: ArtifactRef) -> str:
        return self.names.setdefault(ref, str(ref))

    def add(self, read: Mapping[ArtifactRef, Manifest]) -> None:
        for ref in read:
            self.name_of(ref)
        for ref, manifest in read.items():
            inputs = [self.name_of(ArtifactRef.parse(text)) for text in manifest.inputs.values()]
            _add_artifact(self.graph, self.name_of(ref), ref, manifest, inputs)

    def add_what_they_were_made_from(self, refs: Iterable[ArtifactRef]) -> None:
        waiting = list(refs)
        while waiting := [ref for ref in waiting if self.name_of(ref) not in self.graph.entities]:
            read = manifests(self.bucket, waiting)
            self.add(read)
            waiting = [ArtifactRef.parse(text) for manifest in read.values() for text in manifest.inputs.values()]

    def add_what_was_made_from(self, root: ArtifactRef) -> None:
        """What was made from the graph's root, what was made of that, and so on to the releases."""
        before = families_before(self.bucket)
        models: dict[ArtifactRef, list[str]] = {}
        below = {self.name_of(root)}
        while near := {ref for ref, name in self.names.items() if name in below} - models.keys():
            having = dict(zip(near, in_parallel(lambda ref: self._models_before(ref, before), near), strict=True))
            models |= having
            found = in_parallel(lambda item: self._outputs(*item), having.items())
            new = [ref for refs in found for ref in refs if self.names.get(ref) not in self.graph.entities]
            self.add(manifests(self.bucket, new))
            below |= self.graph.reached(up=False)
        repositories = [ref for ref in models if ref.kind == "repository"]
        noted = in_parallel(lambda ref: released_as(self.bucket, ref), repositories)
        places = {place for each in noted for place in each}
        if had := {model for ref in repositories for model in models[ref]}:
            places |= {(target.name, model) for target in targets(self.bucket) for model in had}
        for target, model in sorted(places):
            self.add_releases(Target(self.bucket, target), model, lambda intent: intent.artifact in models)

    def _models_before(self, ref: ArtifactRef, before: list[tuple[Kind, str]]) -> list[str]:
        """The models that have it in the layout of before."""
        places = [ArtifactRef(kind, ref.identity, model) for kind, model in before if kind == ref.kind]
        return [place.model for place in places if manifest_at(self.bucket, place) is not None]

    def _outputs(self, ref: ArtifactRef, models: list[str]) -> list[ArtifactRef]:
        """What was made from it, and of `models`, which have it in the layout of before, all that may be."""
        later: list[tuple[Kind, str]] = [
            (kind, model) for kind in KINDS[KINDS.index(ref.kind) + 1 :] for model in models
        ]
        return [*outputs(self.bucket, ref), *(each for place in later for each in identities(self.bucket, *place))]

    def add_releases(self, target: Target, model: str, wanted: Callable[[Intent], bool]) -> None:
        current, etag = target.current(model)
        history = target.history(model, wanted)
        standing = standings(target, model, current, history)
        for intent, _ in history:
            stands = standing[intent.release]
            facts = {
                "made": f"{intent.created:%Y-%m-%d %H:%M}",
                # Here the previous release is told as what the name can go back to.
                "state": stands.state if stands.state == "previous" else stands.word,
                "source": intent.source,
            }
            if intent.flow_run:
                facts["run"] = intent.flow_run
            name = str(ReleaseRef(target.name, model, intent.release))
            inputs = [self.name_of(intent.artifact)]
            if intent.former:
                inputs.append(f"{target.name}/{intent.former}")
                self._add_former(target, intent.former)
            self.graph.add(Entity("release", name, facts), inputs)
        if etag is not None:
            live = [] if current.public is None else [str(ReleaseRef(target.name, model, current.public))]
            self.graph.add(Entity("public", str(PublicName(target.name, model)), {}), live)

    def _add_former(self, target: Target, former: str) -> None:
        """Add the release that a renamed model's first one was, and what that was made of."""
        model, _, number = former.rpartition("@")
        if f"{target.name}/{former}" not in self.graph.entities:
            self.add_releases(target, model, lambda intent: str(intent.release) == number)

    def whole(self) -> Lineage:
        graph = self.graph
        # An artifact whose manifest was removed or damaged is known only by its name, as an input of others.
        named = {graph.root, *(name for inputs in graph.inputs.values() for name in inputs)}
        for name in named - graph.entities.keys():
            graph.add(Entity("artifact", name, {"state": "without a manifest"}), [])
        return graph.around_root()


def _add_artifact(found: Lineage, name: str, ref: ArtifactRef, manifest: Manifest, inputs: list[str]) -> None:
    if ref.kind == "snapshot" and not manifest.inputs:  # an exported one is made of snapshots
        source = source_name(manifest.identity)
        found.add(Entity("source", source, {}), [])
        inputs.append(source)
    facts = {
        "made": f"{manifest.created:%Y-%m-%d %H:%M}",
        "by": f"{manifest.producer.task} on {manifest.producer.host}",
        "bytes": str(manifest.size),
        "digest": f"sha256:{manifest.digest}",
    }
    if manifest.producer.flow_run:
        facts["run"] = manifest.producer.flow_run
    if manifest.state != "present":
        facts["state"] = manifest.state
    found.add(Entity(ref.kind, name, facts), inputs)


def source_name(identity: Mapping[str, JsonValue]) -> str:
    """A snapshot's pinned source in one line: `hf repository=org/name commit=…`, or the digest of a pin of files."""
    fields = identity.get("fields")
    pin = fields.get("source") if isinstance(fields, dict) else None
    if not isinstance(pin, dict):
        return "source of an unknown form"
    scheme = str(pin.get("scheme", "source"))
    words = [f"{key}={value}" for key, value in pin.items() if key != "scheme" and isinstance(value, str)]
    return " ".join([scheme, *(words or [f"pin={Identity(pin).digest}"])])
