"""Lineage: what something in the store was made from, and what was made from it. Read from the store alone.

Artifacts of one model are made from each other and from nobody else's, each kind from the one before. So a question
about one reads its own inputs and the later kinds of its own model, however many artifacts the store has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.identity import Identity
from tasks.store.inventory import KINDS, identities, in_parallel, manifests
from tasks.targets.current import Current
from tasks.targets.references import PublicName, Reference, ReleaseRef
from tasks.targets.target import Target, targets


@dataclass(frozen=True)
class Entity:
    """A source, an artifact, a release or a public name. `facts` are what a reader wants to know of it first."""

    kind: str
    name: str
    facts: Mapping[str, str]


_ORDER = ("artifact", "source", *KINDS, "release", "public")


def _place(thing: Entity) -> tuple[int, str, str]:
    return _ORDER.index(thing.kind), thing.facts.get("made", ""), thing.name


@dataclass
class Lineage:
    """A graph of things by name. `inputs` says what each was made from; a source has none."""

    root: str
    model: str
    things: dict[str, Entity] = field(default_factory=dict[str, Entity])
    inputs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _outputs: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(self, thing: Entity, inputs: Iterable[str]) -> None:
        """Add a thing that is not there yet, or a source once more."""
        self.things[thing.name] = thing
        self.inputs[thing.name] = list(inputs)
        for name in self.inputs[thing.name]:
            self._outputs.setdefault(name, []).append(thing.name)

    def outputs(self, name: str) -> list[str]:
        """What was made from `name`, or uses it."""
        return self._outputs.get(name, [])

    def around_root(self) -> Lineage:
        """Only what the root was made from, at any distance, and what was made from it, in the order of making."""
        kept = {self.root, *self.reached(up=True), *self.reached(up=False)}
        part = Lineage(self.root, self.model)
        for thing in sorted((self.things[name] for name in kept), key=_place):
            part.add(thing, [other for other in self.inputs[thing.name] if other in kept])
        return part

    def reached(self, *, up: bool) -> set[str]:
        """The names of what the root was made from, or of what was made from it, at any distance."""
        reached: set[str] = set()
        waiting = [self.root]
        while waiting:
            name = waiting.pop()
            nearer = self.inputs.get(name, []) if up else self.outputs(name)
            waiting += [other for other in nearer if other not in reached]
            reached.update(nearer)
        return reached


def lineage(bucket: Bucket, reference: Reference) -> Lineage:
    """The lineage of what `reference` names, up and down. Raises StoreError."""
    model = reference.model
    found = Lineage(str(reference), model)
    for target in targets(bucket):
        _add_releases(found, target, model)
    if isinstance(reference, ArtifactRef):
        kinds = KINDS[KINDS.index(reference.kind) + 1 :]
        later = in_parallel(lambda kind: identities(bucket, kind, model), kinds)
        read = manifests(bucket, [ref for part in later for ref in part])
        for ref, manifest in read.items():
            _add_artifact(found, ref, manifest)
    waiting = {str(reference)} if isinstance(reference, ArtifactRef) else found.reached(up=True)
    while waiting := {name for name in waiting if name not in found.things and name.split("/")[0] in KINDS}:
        read = manifests(bucket, [ArtifactRef.parse(name) for name in waiting])
        for ref, manifest in read.items():
            _add_artifact(found, ref, manifest)
        waiting = {name for manifest in read.values() for name in manifest.inputs.values()}
    # What is only known as an input, since somebody removed or damaged its manifest, has still a name.
    for name in {found.root, *(name for inputs in found.inputs.values() for name in inputs)} - found.things.keys():
        found.add(Entity("artifact", name, {"state": "without a manifest"}), [])
    return found.around_root()


def _add_artifact(found: Lineage, ref: ArtifactRef, manifest: Manifest) -> None:
    inputs = list(manifest.inputs.values())
    if ref.kind == "snapshot":
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
    found.add(Entity(ref.kind, str(ref), facts), inputs)


def source_name(identity: Mapping[str, JsonValue]) -> str:
    """A snapshot's pinned source in one line: `hf repository=org/name commit=…`, or the digest of its files' pin."""
    fields = identity.get("fields")
    pin = fields.get("source") if isinstance(fields, dict) else None
    if not isinstance(pin, dict):
        return "source of an unknown form"
    scheme = str(pin.get("scheme", "source"))
    words = [f"{key}={value}" for key, value in pin.items() if key != "scheme" and isinstance(value, str)]
    return " ".join([scheme, *(words or [f"pin={Identity(pin).digest}"])])


def _add_releases(found: Lineage, target: Target, model: str) -> None:
    current, etag = target.current(model)
    numbers = target.releases(model)
    intents = in_parallel(lambda number: target.intent(model, number), numbers)
    results = in_parallel(lambda number: target.result(model, number), numbers)
    for intent, result in zip(intents, results, strict=True):
        facts = {
            "made": f"{intent.created:%Y-%m-%d %H:%M}",
            "state": _state(current, intent.release, None if result is None else result.state),
            "source": intent.source,
        }
        if intent.flow_run:
            facts["run"] = intent.flow_run
        name = str(ReleaseRef(target.name, model, intent.release))
        found.add(Entity("release", name, facts), [intent.repository])
    if etag is not None:
        live = [] if current.public is None else [str(ReleaseRef(target.name, model, current.public))]
        found.add(Entity("public", str(PublicName(target.name, model)), {}), live)


def _state(current: Current, release: int, result: str | None) -> str:
    if release == current.public:
        return "live"
    if result is None:
        return "candidate" if release in current.candidates else "abandoned"
    return "previous" if release == current.previous else result
