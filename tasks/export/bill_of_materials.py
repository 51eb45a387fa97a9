"""What a release consists of, as CycloneDX 1.6 has it for models: an ML-BOM in JSON.

https://cyclonedx.org/docs/1.6/json. It lists the model with its card and each of its files, the weights that it was
made from, and what builds and runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal
from uuid import NAMESPACE_URL, uuid5

from pydantic import BaseModel, ConfigDict, Field

from tasks.export.contents import Contents, ReleaseFile
from tasks.export.licence import spdx
from tasks.export.model_card import ModelCard
from tasks.export.oci import Image
from tasks.export.origin import origin_of
from tasks.export.runtime import RuntimePart, runtime_of
from tasks.store.artifact import Artifact
from tasks.store.identity import canonical

ComponentType = Literal[
    "application",
    "machine-learning-model",
    "file",
    "framework",
    "library",
    "platform",
    "container",
    "device",
    "device-driver",
]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hash(_Document):
    alg: Literal["SHA-256"] = "SHA-256"
    content: str


class LicenceName(_Document):
    """By SPDX's identifier, or else by whatever name it has."""

    id: str | None = None
    name: str | None = None


class Licence(_Document):
    license: LicenceName


class Dataset(_Document):
    type: Literal["dataset"] = "dataset"
    name: str


class Format(_Document):
    format: str


class ModelParameters(_Document):
    task: str = "text-generation"
    architectureFamily: str | None = None
    modelArchitecture: str | None = None
    datasets: tuple[Dataset, ...] | None = None
    inputs: tuple[Format, ...] = (Format(format="text"),)
    outputs: tuple[Format, ...] = (Format(format="text"),)


class Property(_Document):
    name: str
    value: str


class Metric(_Document):
    type: str
    value: str


class Analysis(_Document):
    performanceMetrics: tuple[Metric, ...]


class Card(_Document):
    modelParameters: ModelParameters
    quantitativeAnalysis: Analysis | None
    properties: tuple[Property, ...] | None = None


class Component(_Document):
    """One part. `ref` names it in this document."""

    type: ComponentType
    ref: str | None = Field(default=None, serialization_alias="bom-ref")
    name: str
    version: str | None = None
    hashes: tuple[Hash, ...] | None = None
    licenses: tuple[Licence, ...] | None = None
    purl: str | None = None
    modelCard: Card | None = None
    pedigree: Pedigree | None = None


class Pedigree(_Document):
    """What a component was made from."""

    ancestors: tuple[Component, ...]


class Tools(_Document):
    components: tuple[Component, ...]


class Metadata(_Document):
    timestamp: datetime
    tools: Tools
    component: Component


class DependsOn(_Document):
    ref: str
    dependsOn: tuple[str, ...]


class BillOfMaterials(_Document):
    schema_uri: str = Field(default="http://cyclonedx.org/schema/bom-1.6.schema.json", serialization_alias="$schema")
    bomFormat: Literal["CycloneDX"] = "CycloneDX"
    specVersion: Literal["1.6"] = "1.6"
    serialNumber: str
    version: int = 1
    metadata: Metadata
    components: tuple[Component, ...]
    dependencies: tuple[DependsOn, ...]


def bill_of_materials(contents: Contents, image: Image) -> bytes:
    """The ML-BOM of a release. Equal records give equal bytes."""
    model = _model(contents, image)
    files = tuple(map(_file, contents.files))
    runtime = tuple(map(_part, runtime_of(contents)))
    parts = tuple(_unique((*files, *runtime)))
    document = BillOfMaterials(
        serialNumber=f"urn:uuid:{uuid5(NAMESPACE_URL, image.manifest.descriptor.digest)}",
        metadata=Metadata(
            timestamp=contents.intent.created,
            tools=Tools(components=(_tool(contents.repository),)),
            component=model,
        ),
        components=parts,
        dependencies=(DependsOn(ref=contents.name, dependsOn=tuple(filter(None, (each.ref for each in parts)))),),
    )
    return canonical(document.model_dump(mode="json", by_alias=True, exclude_none=True))


def _model(contents: Contents, image: Image) -> Component:
    card, weights = contents.card, contents.snapshots
    metrics = tuple(_metrics(contents))
    ancestors = (*map(_weights, weights), *(_base(name) for name in card.base_models))
    return Component(
        type="machine-learning-model",
        ref=contents.name,
        name=contents.intent.model,
        version=str(contents.intent.release),
        hashes=(Hash(content=image.manifest.descriptor.sha256),),
        licenses=_licences(card),
        modelCard=Card(
            modelParameters=ModelParameters(
                architectureFamily=card.family or None,
                modelArchitecture=card.architecture or None,
                datasets=tuple(Dataset(name=name) for name in card.datasets) or None,
            ),
            quantitativeAnalysis=Analysis(performanceMetrics=metrics) if metrics else None,
            properties=tuple(_properties(contents)),
        ),
        pedigree=Pedigree(ancestors=ancestors) if ancestors else None,
    )


def _metrics(contents: Contents) -> Iterator[Metric]:
    """What each gate's verdict rests on, as the candidate measured it."""
    for verdict in contents.result.gates if contents.result else ():
        if (found := verdict.decisive) is not None:
            value = f"{found.candidate:g} {found.unit}".strip()
            yield Metric(type=f"{verdict.gate}: {found.measure}", value=value)


def _properties(contents: Contents) -> Iterator[Property]:
    for name in ("kind", "dtype", "quantization"):
        if isinstance(value := contents.intent.recipe.get(name), str):
            yield Property(name=f"enginehouse:recipe:{name}", value=value)
    yield Property(name="enginehouse:verdict", value=contents.result.state if contents.result else "none")
    for artifact in (contents.repository, contents.engine):
        yield Property(name=f"enginehouse:artifact:{artifact.ref.kind}", value=str(artifact.ref.own))


def _licences(card: ModelCard) -> tuple[Licence, ...] | None:
    if not card.licence:
        return None
    known = spdx(card.licence)
    return (Licence(license=LicenceName(id=known) if known else LicenceName(name=card.licence)),)


def _weights(snapshot: Artifact) -> Component:
    """The weights as they were fetched. The hash is the digest that their manifest gives."""
    origin = origin_of(snapshot.manifest)
    return Component(
        type="machine-learning-model",
        ref=str(snapshot.ref.own),
        name=origin.name,
        version=origin.version or None,
        hashes=(Hash(content=snapshot.manifest.digest),),
        purl=origin.purl or None,
    )


def _base(name: str) -> Component:
    """A model that the card names as the one that these weights were trained from. In which state, nobody says."""
    return Component(type="machine-learning-model", name=name)


def _file(file: ReleaseFile) -> Component:
    return Component(type="file", ref=file.path, name=file.path, hashes=(Hash(content=file.sha256),))


def _part(part: RuntimePart) -> Component:
    return Component(
        type=part.kind,
        ref=f"runtime/{part.name}",
        name=part.name,
        version=part.version or None,
        hashes=(Hash(content=part.sha256),) if part.sha256 else None,
        purl=part.purl or None,
    )


def _tool(artifact: Artifact) -> Component:
    """The Enginehouse that assembled the release: `enginehouse 0.1.0`."""
    name, _, version = artifact.manifest.producer.code.partition(" ")
    return Component(type="application", name=name, version=version or None)


def _unique(components: tuple[Component, ...]) -> Iterator[Component]:
    """Each once: the document names a component by its reference."""
    yield from {component.ref: component for component in components}.values()
