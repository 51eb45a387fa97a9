"""Where a release comes from, as SLSA provenance 1: an in-toto statement on the digests of the export.

https://slsa.dev/spec/v1.1/provenance. All of it is read from the release's records and from the manifests below them.
`docs/how-to/export.md` says what the build type means and how far the statement can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, JsonValue

from tasks.export.contents import Contents
from tasks.export.oci import Image
from tasks.export.origin import origin_of
from tasks.export.runtime import RuntimePart, runtime_of
from tasks.store.artifact import Artifact
from tasks.store.identity import canonical
from tasks.store.in_toto import Resource, Statement

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:enginehouse:rebuild:v1"
BUILDER = "urn:enginehouse:worker"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dependency(_Frozen):
    """What in-toto calls a resource descriptor."""

    name: str
    uri: str | None = None
    digest: dict[str, str] | None = None


class Asked(_Frozen):
    """What was asked for: the external parameters of the build type."""

    model: str
    source: str
    adapters: dict[str, str]
    recipe: dict[str, JsonValue]
    serving: dict[str, JsonValue]


class Identities(_Frozen):
    """The internal parameters: by artifact, the fields of recipe and runtime that made it what it is."""

    identities: dict[str, JsonValue]


class BuildDefinition(_Frozen):
    buildType: str = BUILD_TYPE
    externalParameters: Asked
    internalParameters: Identities
    resolvedDependencies: tuple[Dependency, ...]


class Builder(_Frozen):
    id: str = BUILDER
    version: dict[str, str]


class Metadata(_Frozen):
    invocationId: str | None
    startedOn: datetime
    finishedOn: datetime


class RunDetails(_Frozen):
    builder: Builder
    metadata: Metadata
    byproducts: tuple[Dependency, ...]


class Provenance(_Frozen):
    buildDefinition: BuildDefinition
    runDetails: RunDetails


class ProvenanceStatement(Statement[Provenance]):
    """The whole statement."""

    predicateType: str = PREDICATE


def statement(contents: Contents, image: Image) -> bytes:
    """The statement on the image of a release and on each of its files. Equal records give equal bytes."""
    intent = contents.intent
    made = [artifact for artifact in contents.artifacts if artifact.ref.kind != "snapshot"]
    said = ProvenanceStatement(
        subject=tuple(_subjects(contents, image)),
        predicate=Provenance(
            buildDefinition=BuildDefinition(
                externalParameters=Asked(
                    model=intent.model,
                    source=intent.source,
                    adapters=intent.adapters,
                    recipe=intent.recipe,
                    serving=intent.serving,
                ),
                internalParameters=Identities(
                    identities={str(artifact.ref.own): artifact.manifest.identity.get("fields") for artifact in made}
                ),
                resolvedDependencies=tuple(_dependencies(contents)),
            ),
            runDetails=RunDetails(
                builder=Builder(version=dict(_code(made))),
                metadata=Metadata(
                    invocationId=intent.flow_run or None,
                    startedOn=min(map(_started, made)),
                    finishedOn=max(artifact.manifest.created for artifact in made),
                ),
                byproducts=tuple(_by_digest(each) for each in made if each.ref.kind not in ("repository", "engine")),
            ),
        ),
    )
    return canonical(said.model_dump(mode="json", by_alias=True, exclude_none=True))


def _subjects(contents: Contents, image: Image) -> Iterator[Resource]:
    yield Resource(name=contents.name, digest={"sha256": image.manifest.descriptor.sha256})
    for file in contents.files:
        yield Resource(name=file.path, digest={"sha256": file.sha256})


def _dependencies(contents: Contents) -> Iterator[Dependency]:
    """The weights, as they were pinned and file by file, and then the runtime."""
    for snapshot in contents.snapshots:
        origin = origin_of(snapshot.manifest)
        commit = {"gitCommit": origin.commit} if origin.commit else None
        yield Dependency(name=origin.name, uri=origin.purl or None, digest=commit)
        for file in snapshot.manifest.files:
            yield Dependency(name=f"{snapshot.ref.own}/{file.path}", digest={"sha256": file.sha256})
    yield from map(_part, runtime_of(contents))


def _part(part: RuntimePart) -> Dependency:
    if part.sha256:
        return Dependency(name=part.name, digest={"sha256": part.sha256})
    return Dependency(name=" ".join(filter(None, (part.name, part.version))), uri=part.purl or None)


def _by_digest(artifact: Artifact) -> Dependency:
    """An artifact by the digest that its manifest gives: over paths and their sha256, in order of path."""
    return Dependency(name=str(artifact.ref.own), digest={"sha256": artifact.manifest.digest})


def _code(made: list[Artifact]) -> Iterator[tuple[str, str]]:
    """Which Enginehouse made which kind of artifact."""
    for artifact in made:
        yield artifact.ref.kind, artifact.manifest.producer.code


def _started(artifact: Artifact) -> datetime:
    return artifact.manifest.created - timedelta(seconds=artifact.manifest.producer.seconds)
