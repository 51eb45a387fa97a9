"""What the store holds, read in parallel. Listings suffice for most questions; manifests are read for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from pydantic import ValidationError

from infra.s3.bucket import CONNECTIONS, Bucket, Entry
from tasks.store.artifact import ArtifactRef, Kind, Manifest

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of making: each kind is made from the one before."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_parallel(work: Callable[[ItemT], ResultT], items: Iterable[ItemT]) -> list[ResultT]:
    """The results of `work`, in the order of `items`. One thread for each connection to the store does the work."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(work, items))


def read_manifest(bucket: Bucket, ref: ArtifactRef) -> Manifest | None:
    """The manifest, whatever became of its files; None if it is missing or unreadable. Raises FormatNewer."""
    record = bucket.get(ref.folder + "manifest.json")
    if record is None:
        return None
    try:
        return Manifest.model_validate_json(record.body)
    except ValidationError:
        return None


def manifests(bucket: Bucket, refs: Iterable[ArtifactRef]) -> dict[ArtifactRef, Manifest]:
    """The readable manifests of `refs`."""
    wanted = list(refs)
    found = in_parallel(lambda ref: read_manifest(bucket, ref), wanted)
    return {ref: manifest for ref, manifest in zip(wanted, found, strict=True) if manifest is not None}


def families(bucket: Bucket) -> list[tuple[Kind, str]]:
    """Every kind and model that has an artifact in the store, or had one."""
    models = in_parallel(lambda kind: bucket.folders(f"artifacts/{kind}/"), KINDS)
    return [(kind, model) for kind, names in zip(KINDS, models, strict=True) for model in names]


def identities(bucket: Bucket, kind: Kind, model: str, start: str = "") -> list[ArtifactRef]:
    """The artifacts of a kind and model whose identity begins with `start`. One listing; no manifest is read."""
    return [ArtifactRef(kind, model, name) for name in bucket.folders(f"artifacts/{kind}/{model}/{start}")]


@dataclass
class Stored:
    """Every object below the folder of one artifact."""

    ref: ArtifactRef
    manifest: Entry | None = None
    attempts: dict[str, list[Entry]] = field(default_factory=dict[str, list[Entry]])
    """By attempt, committed or not: its files and its signature."""
    damaged: list[Entry] = field(default_factory=list[Entry])
    """Manifests of artifacts that were replaced."""


def everything(bucket: Bucket) -> list[Stored]:
    """All artifacts. One listing for each kind and model, in parallel; no manifest is read."""

    def family(known: tuple[Kind, str]) -> list[Stored]:
        kind, model = known
        found: dict[str, Stored] = {}
        prefix = f"artifacts/{kind}/{model}/"
        for entry in bucket.list(prefix):
            identity, _, rest = entry.key.removeprefix(prefix).partition("/")
            stored = found.setdefault(identity, Stored(ArtifactRef(kind, model, identity)))
            folder, _, name = rest.partition("/")
            if rest == "manifest.json":
                stored.manifest = entry
            elif folder == "damaged":
                stored.damaged.append(entry)
            else:
                attempt = name.removesuffix(".json") if folder == "signatures" else folder
                stored.attempts.setdefault(attempt, []).append(entry)
        return list(found.values())

    return [stored for part in in_parallel(family, families(bucket)) for stored in part]
