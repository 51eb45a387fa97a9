"""What the store holds, read in parallel. Listings suffice for most questions; manifests are read for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from pydantic import ValidationError

from infra.s3.bucket import CONNECTIONS, Bucket, Entry
from tasks.store.artifact import Artifact, ArtifactRef, Kind, Manifest
from tasks.store.names import is_identity
from tasks.store.notes import NOTES

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of making: each kind is made from the one before."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_parallel(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
    """The results of `work`, in the order of `items`. One thread for each connection to the store does the work."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(work, items))


def recorded_artifact(bucket: Bucket, ref: ArtifactRef) -> Artifact | None:
    """The artifact by its manifest alone, whatever became of its files; None if that is missing or unreadable.

    It has the reference of where it lies: where `ref` says, or by itself if it was made again. Raises FormatNewer.
    """
    before = manifest_at(bucket, ref)
    if before is not None and before.state == "present":
        return Artifact(ref, before)
    again = manifest_at(bucket, ref.own) if ref.model else None
    if again is not None:
        return Artifact(ref.own, again)
    return None if before is None else Artifact(ref, before)


def read_manifest(bucket: Bucket, ref: ArtifactRef) -> Manifest | None:
    """As `recorded_artifact`, the manifest alone."""
    found = recorded_artifact(bucket, ref)
    return None if found is None else found.manifest


def manifest_at(bucket: Bucket, place: ArtifactRef) -> Manifest | None:
    """The manifest that lies at exactly this place; None if it is missing or unreadable. Raises FormatNewer."""
    record = bucket.get(place.folder + "manifest.json")
    if record is None:
        return None
    try:
        return Manifest.model_validate_json(record.body)
    except ValidationError:
        return None


def manifests(bucket: Bucket, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, Manifest]:
    """The readable manifests of `refs`, each by the reference of where it lies."""
    found: dict[ArtifactRef, Manifest] = {}
    for artifact in in_parallel(lambda ref: recorded_artifact(bucket, ref), refs):
        if artifact is not None:
            found.setdefault(artifact.ref, artifact.manifest)
    return found


def models_before(bucket: Bucket, kind: Kind) -> list[str]:
    """The models that have artifacts of this kind in the layout of before."""
    return [name for name in bucket.folders(f"artifacts/{kind}/") if not is_identity(name)]


def families_before(bucket: Bucket) -> list[tuple[Kind, str]]:
    """Every kind and model in the layout of before."""
    models = in_parallel(lambda kind: models_before(bucket, kind), KINDS)
    return [(kind, model) for kind, names in zip(KINDS, models, strict=True) for model in names]


def identities(bucket: Bucket, kind: Kind, model: str = "", start: str = "") -> list[ArtifactRef]:
    """The artifacts of a kind whose identity begins with `start`. One listing; no manifest is read.

    With a model, those that it has in the layout of before.
    """
    folder = f"artifacts/{kind}/{model}/" if model else f"artifacts/{kind}/"
    return [ArtifactRef(kind, name, model) for name in bucket.folders(folder + start) if is_identity(name)]


def all_identities(bucket: Bucket, kinds: Iterable[Kind] = KINDS, start: str = "") -> list[ArtifactRef]:
    """The same of several kinds in both layouts. One that lies in several places is there several times."""
    wanted = tuple(kinds)
    places: list[tuple[Kind, str]] = []
    places.extend((kind, "") for kind in wanted)
    places.extend(place for place in families_before(bucket) if place[0] in wanted)
    return [ref for part in in_parallel(lambda place: identities(bucket, *place, start=start), places) for ref in part]


def identity_in(key: str) -> str:
    """The identity in the key of an object of an artifact; empty if the key has none."""
    return next((part for part in key.split("/")[2:4] if is_identity(part)), "")


@dataclass
class Stored:
    """Every object below the folder of one artifact, in one of the layouts: `ref` says where."""

    ref: ArtifactRef
    manifest: Entry | None = None
    attempts: dict[str, list[Entry]] = field(default_factory=dict[str, list[Entry]])
    """By attempt, committed or not: its files and its signature."""
    damaged: list[Entry] = field(default_factory=list[Entry])
    """Manifests of artifacts that were replaced."""


def everything(bucket: Bucket) -> list[Stored]:
    """All artifacts, in both layouts. One listing for each part of the store, in parallel; no manifest is read."""

    def part(place: tuple[Kind, str, str]) -> list[Stored]:
        kind, model, start = place
        found: dict[str, Stored] = {}
        prefix = f"artifacts/{kind}/{model}/" if model else f"artifacts/{kind}/"
        for entry in bucket.list(prefix + start):
            identity, _, rest = entry.key.removeprefix(prefix).partition("/")
            if is_identity(identity):
                _sort_in(found.setdefault(identity, Stored(ArtifactRef(kind, identity, model))), entry, rest)
        return list(found.values())

    # Identities are spread evenly over their first digits.
    places: list[tuple[Kind, str, str]] = []
    places.extend((kind, model, "") for kind, model in families_before(bucket))
    places.extend((kind, "", digit) for kind in KINDS for digit in "0123456789abcdef")
    return [stored for found in in_parallel(part, places) for stored in found]


def _sort_in(stored: Stored, entry: Entry, rest: str) -> None:
    folder, _, name = rest.partition("/")
    if rest == "manifest.json":
        stored.manifest = entry
    elif folder == "damaged":
        stored.damaged.append(entry)
    elif folder not in NOTES:
        attempt = name.removesuffix(".json") if folder == "signatures" else folder
        stored.attempts.setdefault(attempt, []).append(entry)
