"""What a rebuild would find in the store: which steps have been made already, and why the others have not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from infra.s3.bucket import Bucket
from tasks.explain.why import differences
from tasks.explain.why_text import told
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan
from tasks.steps.resolve import ResolvedWeights
from tasks.store.artifact import Artifact, ArtifactRef, Manifest
from tasks.store.artifact_store import ArtifactStore, Lookup
from tasks.store.identity import Identity
from tasks.store.inventory import in_parallel, read_manifest

StepName = Literal["fetch", "export", "convert", "build", "assemble"]
_INPUT: Mapping[StepName, str] = {"assemble": "engine", "build": "checkpoint", "convert": "snapshot"}
"""The role of the artifact that a step is made of first."""


@dataclass(frozen=True)
class PlannedStep:
    """One step of a rebuild. `why` says of one that is to be made why the store does not have it.

    `part` names what it is of, where that is not the model's own: the address of an adapter, or the draft model.
    """

    step: StepName
    state: Literal["cached", "to make"]
    ref: ArtifactRef
    why: str = ""
    part: str = ""
    download_bytes: int | None = None
    """That a fetch brings, as far as the source says it."""
    artifact: Artifact | None = None


@dataclass(frozen=True)
class _Wanted:
    step: StepName
    ref: ArtifactRef
    identity: Identity
    part: str = ""
    download_bytes: int | None = None


def planned_steps(
    store: ArtifactStore, plan: Plan, weights: ResolvedWeights, before: Mapping[StepName, Manifest]
) -> tuple[PlannedStep, ...]:
    """The steps in the order in which they run. `before` are those of an earlier release, to compare with.

    Raises StoreError.
    """
    wanted = list(_wanted(plan, weights))
    found = in_parallel(lambda each: store.look_up(each.ref), wanted)
    steps: list[PlannedStep] = []
    for each, known in zip(wanted, found, strict=True):
        above = [step for step in steps if step.state == "to make"]
        cached = known.artifact is not None
        steps.append(
            PlannedStep(
                each.step,
                "cached" if cached else "to make",
                each.ref,
                "" if cached else _why(each, known, None if each.part else before.get(each.step), above),
                each.part,
                each.download_bytes,
                known.artifact,
            )
        )
    return tuple(steps)


def made_before(bucket: Bucket, repository: ArtifactRef) -> dict[StepName, Manifest]:
    """The manifests of a release's repository and of what it is made of, by step, as far as they can be read."""
    found: dict[StepName, Manifest] = {}
    reference: ArtifactRef | None = repository
    step: StepName = "assemble"
    while reference is not None and (manifest := read_manifest(bucket, reference)) is not None:
        step = _step_of(manifest)
        found[step] = manifest
        role = _INPUT.get(step, "")
        reference = ArtifactRef.parse(manifest.inputs[role]) if role in manifest.inputs else None
    return found


def _step_of(manifest: Manifest) -> StepName:
    match manifest.kind:
        case "repository":
            return "assemble"
        case "engine":
            return "build"
        case "checkpoint":
            return "convert"
        case _:
            return "export" if manifest.identity.get("step") == "export" else "fetch"


def _wanted(plan: Plan, weights: ResolvedWeights) -> Iterator[_Wanted]:
    for resolved in weights:
        identity = snapshot_identity(resolved)
        sizes = [file.size for file in resolved.files]
        known = None if None in sizes else resolved.known_bytes
        part = "" if resolved is weights.source else resolved.uri
        yield _Wanted("fetch", ArtifactRef("snapshot", identity.digest), identity, part, known)
    if weights.exported:
        yield _Wanted("export", ArtifactRef("snapshot", plan.snapshot.digest), plan.snapshot)
    if plan.drafting is not None:
        yield _Wanted("convert", plan.drafting.checkpoint_ref, plan.drafting.checkpoint, "the draft model")
        yield _Wanted("build", plan.drafting.engine_ref, plan.drafting.engine, "the draft model")
    yield _Wanted("convert", plan.checkpoint_ref, plan.checkpoint)
    yield _Wanted("build", plan.engine_ref, plan.engine)
    yield _Wanted("assemble", plan.repository_ref, plan.repository)


def _why(wanted: _Wanted, known: Lookup, before: Manifest | None, above: list[PlannedStep]) -> str:
    if known.manifest_etag is not None:
        return known.problem
    if before is None:
        return "never made"
    if changed := differences(before.identity, wanted.identity.document):
        return told(changed)
    return f"depends on {above[-1].step}" if above else "made of something else than before"
