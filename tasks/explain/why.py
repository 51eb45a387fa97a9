"""Why an artifact was rebuilt: the identity documents of then and now, compared field by field, down to the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.identity import SCHEMA
from tasks.store.inventory import all_identities, manifests, read_manifest
from tasks.store.record import require_known
from tasks.targets.references import PublicName, Reference, ReleaseRef
from tasks.targets.release import Result
from tasks.targets.target import Target
from tasks.targets.watch_record import WatchOutcome, WatchRecords

_RUNTIME = {
    "tensorrt_llm": "TensorRT-LLM",
    "tensorrt": "TensorRT",
    "cuda": "CUDA",
    "gpu": "GPU",
    "architecture": "GPU",
    "modelopt": "ModelOpt",
    "xllamacpp": "llama.cpp",
}
_SUBJECTS = ("weights", "recipe", "GPU", "serving settings", "serving code")
"""Subjects that every release has, in the order of printing; the others are versions of tools."""

OWN_STEPS = "steps of Enginehouse"
GROUPS = ("weights", "recipe", "serving settings", OWN_STEPS)
"""Subjects with many fields. Each of the others is a single field, and its name says enough."""


@dataclass(frozen=True)
class Difference:
    """A field that differs. `old` or `new` is None if that document does not have the field."""

    subject: str
    field: str
    old: JsonValue
    new: JsonValue


@dataclass(frozen=True)
class Step:
    """An artifact of then beside the one of now."""

    kind: str
    old: ArtifactRef
    new: ArtifactRef
    subjects: frozenset[str]
    changes: tuple[Difference, ...]
    bytes_differ: bool

    @property
    def rebuilt(self) -> bool:
        """Whether it has another identity, or the same one and other bytes."""
        return self.old.identity != self.new.identity or self.bytes_differ


@dataclass(frozen=True)
class Explanation:
    """Why `new` is not `old`. `steps` go from the artifact that was asked for down to the snapshot."""

    old: str
    new: str
    steps: tuple[Step, ...]
    result: Result | None = None
    """The verdict on `new`, if that is a release that has one."""
    watch: WatchOutcome | None = None
    """What came of the watch over it, if there was one."""

    @property
    def changes(self) -> tuple[Difference, ...]:
        """Each difference once, even if several steps have it. Versions of tools come first."""
        found = [change for step in self.steps for change in step.changes]
        once = [change for number, change in enumerate(found) if change not in found[:number]]
        return tuple(sorted(once, key=lambda change: (change.subject in _SUBJECTS, _place(change.subject))))

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The subjects in which no field differs."""
        changed = {change.subject for change in self.changes}
        return tuple(sorted({subject for step in self.steps for subject in step.subjects} - changed, key=_place))


def why(bucket: Bucket, reference: Reference, against: Reference | None = None) -> Explanation:
    """Compare with `against`, by default with what came before: the last release that passed, or the last artifact.

    Raises UsageError, code `nothing-before`, `manifest-missing` or `release-missing`.
    """
    new = _release(bucket, reference) if isinstance(reference, PublicName) else reference
    old = _before(bucket, new) if against is None else against
    old = _release(bucket, old) if isinstance(old, PublicName) else old
    steps = tuple(_steps(bucket, _artifact(bucket, old), _artifact(bucket, new)))
    if not isinstance(new, ReleaseRef):
        return Explanation(str(old), str(new), steps)
    target = Target(bucket, new.target)
    watch = WatchRecords(target, new.model).outcome(new.release)
    return Explanation(str(old), str(new), steps, target.result(new.model, new.release), watch)


def _release(bucket: Bucket, name: PublicName) -> ReleaseRef:
    current, _ = Target(bucket, name.target).current(name.model)
    if current.public is None:
        raise UsageError(f"{name} answers with no release", hint=f"name one: {name.model}@N", code="release-missing")
    return ReleaseRef(name.target, name.model, current.public)


def _artifact(bucket: Bucket, reference: Reference) -> ArtifactRef:
    if isinstance(reference, ReleaseRef):
        return Target(bucket, reference.target).intent(reference.model, reference.release).artifact
    assert isinstance(reference, ArtifactRef)
    return reference


def _before(bucket: Bucket, reference: ArtifactRef | ReleaseRef) -> ArtifactRef | ReleaseRef:
    if isinstance(reference, ReleaseRef):
        target = Target(bucket, reference.target)
        for number in reversed([n for n in target.releases(reference.model) if n < reference.release]):
            result = target.result(reference.model, number)
            if result is not None and result.may_be_public:
                return ReleaseRef(reference.target, reference.model, number)
    else:
        own = _manifest(bucket, reference)
        others = manifests(bucket, all_identities(bucket, [reference.kind]))
        earlier = [
            (manifest.created, ref)
            for ref, manifest in others.items()
            if manifest.created < own.created and manifest.model == own.model
        ]
        if earlier:
            return max(earlier, key=lambda found: found[0])[1]
    raise UsageError(
        f"nothing came before {reference}: it is the first of its kind",
        hint="compare with something else: --against",
        code="nothing-before",
    )


def _manifest(bucket: Bucket, ref: ArtifactRef) -> Manifest:
    manifest = read_manifest(bucket, ref)
    if manifest is None:
        raise UsageError(f"the store has no readable manifest of {ref}", code="manifest-missing")
    schema = manifest.identity.get("schema")
    require_known(schema if isinstance(schema, int) else SCHEMA, SCHEMA, "identity document")
    return manifest


def _steps(bucket: Bucket, old_ref: ArtifactRef, new_ref: ArtifactRef, role: str = "") -> Iterator[Step]:
    old, new = _manifest(bucket, old_ref), _manifest(bucket, new_ref)
    then, now = dict(_all_fields(old, new, role)), dict(_all_fields(new, old, role))
    yield Step(
        new_ref.kind,
        old_ref,
        new_ref,
        frozenset(subject for subject, _ in {**then, **now}),
        _compared(then, now),
        old.digest != new.digest,
    )
    for role, reference in new.inputs.items():
        if role in old.inputs:
            yield from _steps(bucket, ArtifactRef.parse(old.inputs[role]), ArtifactRef.parse(reference), role)


def differences(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> tuple[Difference, ...]:
    """The fields in which two identity documents of one step differ, without what they are made from."""
    return _compared(dict(_fields(old)), dict(_fields(new)))


def _compared(
    then: Mapping[tuple[str, str], JsonValue], now: Mapping[tuple[str, str], JsonValue]
) -> tuple[Difference, ...]:
    return tuple(
        Difference(subject, field, then.get((subject, field)), now.get((subject, field)))
        for subject, field in {**then, **now}
        if then.get((subject, field)) != now.get((subject, field))
    )


def _all_fields(manifest: Manifest, other: Manifest, role: str) -> Iterator[tuple[tuple[str, str], JsonValue]]:
    """The fields of its identity, and the inputs that `other` lacks: an adapter. `role` is the artifact's own."""
    for (subject, field), value in _fields(manifest.identity):
        yield (subject, f"{role}.{field}" if subject == "weights" and role.startswith("adapter") else field), value
    for input, reference in manifest.inputs.items():
        if input not in other.inputs:
            yield ("weights", input), reference


def _fields(document: Mapping[str, JsonValue]) -> Iterator[tuple[tuple[str, str], JsonValue]]:
    """The leaves of an identity document without its inputs, each under the subject that people know it by."""
    step = str(document.get("step"))
    yield (OWN_STEPS, step), document.get("version")
    fields = document.get("fields")
    for name, value in _mapping(fields).items():
        match name:
            case "source":
                yield from ((("weights", path), leaf) for path, leaf in _leaves(_pin(value)))
            case "runtime":
                for tool, version in _mapping(value).items():
                    yield (_RUNTIME.get(tool, tool), tool), version
            case "serving":
                yield from ((("serving settings", path), leaf) for path, leaf in _leaves(value))
            case "code":
                yield ("serving code", ""), value
            case _:
                yield from ((("recipe", path), leaf) for path, leaf in _leaves(value, name))


def _pin(value: JsonValue) -> JsonValue:
    """A source's pin with its files by path, so that a changed file is named."""
    pin = dict(_mapping(value))
    files = pin.pop("files", None)
    if isinstance(files, list):
        pin["files"] = {str(_mapping(file).get("path")): _mapping(file).get("digest") for file in files}
    return pin


def _leaves(value: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else cast(dict[str, JsonValue], {})


def _place(subject: str) -> tuple[int, str]:
    return (_SUBJECTS.index(subject) if subject in _SUBJECTS else len(_SUBJECTS), subject)
