"""What must stay in the store: everything that a live, previous, candidate, recent, pinned or running release needs.

An engine needs neither its checkpoint nor its snapshot: it runs without them, and its manifest still names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from infra.errors import ArtifactDamaged
from infra.s3.bucket import Bucket, Entry
from tasks.garbage.keep import PINS, USES, Use, pinned_by
from tasks.store.artifact import ArtifactRef, recorded
from tasks.store.inventory import in_parallel, read_manifest
from tasks.store.lease import holder_of
from tasks.targets.gate_records import GateRecords
from tasks.targets.references import ReleaseRef
from tasks.targets.target import Target, released_models, targets

RUNNING_SECONDS = 3600.0
"""What a run wrote this recently may still be in the making, however short the grace time. By the store's clock."""


@dataclass(frozen=True)
class Reached:
    """Why each artifact stays, and the identities whose lease a run holds."""

    reasons: dict[ArtifactRef, str]
    leased: frozenset[str]
    unused: tuple[Entry, ...]
    """Use records of runs that are over."""


def reached(bucket: Bucket, grace_seconds: float, running_seconds: float = RUNNING_SECONDS) -> Reached:
    """Everything that is wanted now.

    Raises ArtifactDamaged if a wanted repository does not say which engine it needs, and FormatNewer.
    """
    leased = _leased(bucket, running_seconds)
    reasons: dict[ArtifactRef, str] = {}
    releases: dict[ReleaseRef, str] = {}
    for entry in bucket.list(PINS):
        kept = pinned_by(entry.key)
        if isinstance(kept, ReleaseRef):
            releases.setdefault(kept, "is pinned")
        else:
            reasons[kept] = "pinned"
    for target in targets(bucket):
        _wanted_releases(target, grace_seconds, releases)

    def repository(release: ReleaseRef) -> ArtifactRef:
        return Target(bucket, release.target).intent(release.model, release.release).artifact

    for ref, (release, why) in zip(in_parallel(repository, releases), releases.items(), strict=True):
        reasons.setdefault(ref, f"release {release} {why}")
    compared = in_parallel(lambda release: _compared_with(bucket, release), releases)
    for refs, (release, why) in zip(compared, releases.items(), strict=True):
        for ref in refs:
            reasons.setdefault(ref, f"release {release} {why}, and was compared with it")
    unused = _uses(bucket, max(grace_seconds, running_seconds), leased, reasons)
    repositories = [ref for ref in reasons if ref.kind == "repository"]
    for ref, inputs in zip(repositories, in_parallel(lambda ref: _inputs(bucket, ref), repositories), strict=True):
        for engine in inputs:
            reasons.setdefault(engine, f"{reasons[ref]}, and needs it")
    return Reached(reasons, leased, unused)


def _leased(bucket: Bucket, running_seconds: float) -> frozenset[str]:
    """Identities whose lease has a holder that renewed it lately. Leases are far shorter than `running_seconds`."""
    recent = [entry.key for entry in bucket.list("leases/") if entry.age < running_seconds]
    leased: set[str] = set()
    for key, record in zip(recent, in_parallel(bucket.get, recent), strict=True):
        if record is None:
            continue
        if holder_of(record.body) is not None:
            leased.add(key.removeprefix("leases/").removesuffix(".json"))
    return frozenset(leased)


def _wanted_releases(target: Target, grace_seconds: float, found: dict[ReleaseRef, str]) -> None:
    for model in released_models(target):
        current, _ = target.current(model)
        for number, why in (
            (current.public, "is live"),
            (current.previous, "is the previous one"),
            *((candidate, "is a candidate") for candidate in current.candidates),
        ):
            if number is not None:
                found[ReleaseRef(target.name, model, number)] = why
        if current.retired is not None:
            continue  # its releases are history, however young
        for number, age in target.ages(model).items():
            if age < grace_seconds:
                found.setdefault(ReleaseRef(target.name, model, number), "is younger than the grace time")
    for node in target.nodes():
        for model, report in node.models.items():
            for number in report.releases:
                found.setdefault(ReleaseRef(target.name, model, number), f"is loaded on node '{node.node}'")


def _uses(
    bucket: Bucket, recent_seconds: float, leased: frozenset[str], reasons: dict[ArtifactRef, str]
) -> tuple[Entry, ...]:
    """Add what runs use to `reasons`; returns the use records of runs that are over."""
    entries = list(bucket.list(USES))
    unused: list[Entry] = []
    for entry, record in zip(entries, in_parallel(lambda entry: bucket.get(entry.key), entries), strict=True):
        if record is None:
            continue
        refs = [recorded(reference) for reference in Use.model_validate_json(record.body).references]
        if entry.age >= recent_seconds and leased.isdisjoint(ref.identity for ref in refs):
            unused.append(entry)
            continue
        for ref in refs:
            reasons.setdefault(ref, "a run uses it, or did within the grace time")
    return tuple(unused)


def _compared_with(bucket: Bucket, release: ReleaseRef) -> list[ArtifactRef]:
    """The references that the gates of a release have compared it with: the next one may be compared with them too."""
    try:
        records = GateRecords(Target(bucket, release.target), release.model, release.release).all()
        return [recorded(record.evidence.reference) for record in records if record.evidence.reference]
    except (ValidationError, ArtifactDamaged):
        return []  # what a record that cannot be read has named is made again


def _inputs(bucket: Bucket, ref: ArtifactRef) -> list[ArtifactRef]:
    manifest = read_manifest(bucket, ref)
    if manifest is not None:
        # Its adapters are in it, as its engine takes them: their snapshots are only what they were made from.
        inputs = (ArtifactRef.parse(text) for text in manifest.inputs.values())
        return [ref for ref in inputs if ref.kind != "snapshot"]
    if bucket.get(ref.folder + "manifest.json") is None:
        return []  # a run is still to make it
    raise ArtifactDamaged(
        f"the manifest of {ref} cannot be read, so it is unknown which engine it needs; nothing was collected",
        hint="run its rebuild again: it makes the artifact again",
    )
