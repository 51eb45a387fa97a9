"""The documents of an OCI image layout 1.0 that holds a release, and what is said of it as artifacts that refer to it.

Its manifest is that of a model as CNCF's ModelPack has it: each file is a layer, as it is, with its path in the
annotations that ModelPack and ORAS read. Sources: opencontainers/image-spec v1.1, `manifest.md` and `image-layout.md`;
modelpack/model-spec, `docs/spec.md`, `docs/config.md` and `docs/annotations.md` of June 2026.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.export.contents import Contents, ReleaseFile
from tasks.export.licence import spdx
from tasks.export.origin import origin_of
from tasks.store.identity import canonical

LAYOUT = canonical({"imageLayoutVersion": "1.0.0"})
"""The file `oci-layout`."""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_EMPTY = "application/vnd.oci.empty.v1+json"
_MODEL = "application/vnd.cncf.model"
MODEL = f"{_MODEL}.manifest.v1+json"
_TITLE = "org.opencontainers.image.title"
_NOTHING = b"{}"
"""The configuration of an artifact that has none, by the specification."""

_DOCUMENTS = frozenset({".md"})
_CODE = frozenset({".py"})
_SETTINGS = frozenset({".json", ".txt", ".jinja", ".model", ".pbtxt", ".tiktoken", ".yaml"})
_FORMATS = {".engine": "tensorrt", ".gguf": "gguf", ".safetensors": "safetensors"}
"""What a model is, by the files with its weights."""


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def body(self) -> bytes:
        """As it is digested: canonical JSON, without what is not said."""
        return canonical(self.model_dump(mode="json", exclude_none=True))


class Descriptor(_Document):
    """Names a blob. `digest` is `sha256:…`, `size` in bytes."""

    mediaType: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    artifactType: str | None = None

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")


class ImageManifest(_Document):
    schemaVersion: Literal[2] = 2
    mediaType: str = MANIFEST
    artifactType: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class ImageIndex(_Document):
    schemaVersion: Literal[2] = 2
    mediaType: str = _INDEX
    manifests: tuple[Descriptor, ...]


class _ModelDescriptor(_Document):
    createdAt: datetime
    name: str
    version: str
    family: str | None
    sourceURL: str | None
    revision: str | None
    licenses: tuple[str, ...] | None


class _Capabilities(_Document):
    inputTypes: tuple[str, ...] = ("text",)
    outputTypes: tuple[str, ...] = ("text",)


class _TechnicalConfig(_Document):
    architecture: str = "transformer"
    format: str | None
    precision: str | None
    quantization: str | None
    capabilities: _Capabilities = _Capabilities()


class _ModelFiles(_Document):
    type: Literal["layers"] = "layers"
    diffIds: tuple[str, ...]


class _ModelConfig(_Document):
    """ModelPack's configuration of a model."""

    descriptor: _ModelDescriptor
    config: _TechnicalConfig
    modelfs: _ModelFiles


class Blob(BaseModel):
    """A small blob with its bytes, and what names it."""

    model_config = ConfigDict(frozen=True)

    descriptor: Descriptor
    body: bytes


class Image(BaseModel):
    """An image of the layout: its manifest, the blobs that it names apart from files of a release, and their layers."""

    model_config = ConfigDict(frozen=True)

    manifest: Blob
    blobs: tuple[Blob, ...]
    layers: tuple[Descriptor, ...]

    @property
    def named(self) -> frozenset[str]:
        """The sha256 of every blob that belongs to it."""
        own = (self.manifest, *self.blobs)
        return frozenset(each.sha256 for each in (*(blob.descriptor for blob in own), *self.layers))


def model_image(contents: Contents) -> Image:
    """The image of a release. Equal records give equal bytes."""
    layers = tuple(map(_layer, contents.files))
    intent = contents.intent
    config = _blob(_model_config(contents, layers).body(), f"{_MODEL}.config.v1+json")
    licence = spdx(contents.card.licence)
    manifest = ImageManifest(
        artifactType=MODEL,
        config=config.descriptor,
        layers=layers,
        annotations={
            _TITLE: intent.model,
            "org.opencontainers.image.version": str(intent.release),
            "org.opencontainers.image.created": intent.created.isoformat(),
            **({"org.opencontainers.image.licenses": licence} if licence else {}),
        },
    )
    return Image(manifest=_blob(manifest.body(), MANIFEST, artifact=MODEL), blobs=(config,), layers=layers)


def referring_image(subject: Image, title: str, body: bytes, artifact: str, media_type: str) -> Image:
    """An artifact of type `artifact` that refers to `subject`: one document, which clients save as the file `title`."""
    config, layer = _blob(_NOTHING, _EMPTY), _blob(body, media_type, annotations={_TITLE: title})
    of = subject.manifest.descriptor
    manifest = ImageManifest(
        artifactType=artifact,
        config=config.descriptor,
        layers=(layer.descriptor,),
        subject=Descriptor(mediaType=of.mediaType, digest=of.digest, size=of.size),
    )
    return Image(
        manifest=_blob(manifest.body(), MANIFEST, artifact=artifact),
        blobs=(config, layer),
        layers=(layer.descriptor,),
    )


def index(image: Image, tag: str, referring: Sequence[Image]) -> bytes:
    """The file `index.json`: the release under `tag`, and what refers to it."""
    tagged = image.manifest.descriptor.model_copy(update={"annotations": {"org.opencontainers.image.ref.name": tag}})
    return ImageIndex(manifests=(tagged, *(each.manifest.descriptor for each in referring))).body()


def _blob(
    body: bytes, media_type: str, *, annotations: dict[str, str] | None = None, artifact: str | None = None
) -> Blob:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    named = Descriptor(
        mediaType=media_type, digest=digest, size=len(body), annotations=annotations, artifactType=artifact
    )
    return Blob(descriptor=named, body=body)


def _layer(file: ReleaseFile) -> Descriptor:
    return Descriptor(
        mediaType=f"{_MODEL}.{_role(file.path)}.v1.raw",
        digest=f"sha256:{file.sha256}",
        size=file.size,
        annotations={_TITLE: file.path, "org.cncf.model.filepath": file.path},
    )


def _role(path: str) -> str:
    """What a file is for, as ModelPack divides them."""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in _DOCUMENTS:
        return "doc"
    if suffix in _CODE:
        return "code"
    return "weight.config" if suffix in _SETTINGS else "weight"


def _model_config(contents: Contents, layers: Sequence[Descriptor]) -> _ModelConfig:
    intent, card = contents.intent, contents.card
    origin = None if contents.weights is None else origin_of(contents.weights.manifest)
    licence = spdx(card.licence)
    formats = [_FORMATS[suffix] for suffix in _suffixes(contents) if suffix in _FORMATS]
    return _ModelConfig(
        descriptor=_ModelDescriptor(
            createdAt=intent.created,
            name=intent.model,
            version=str(intent.release),
            family=card.family or None,
            sourceURL=(origin.purl if origin else "") or None,
            revision=(origin.version if origin else "") or None,
            licenses=(licence,) if licence else None,
        ),
        config=_TechnicalConfig(
            format=formats[0] if formats else None,
            precision=_text(contents, "dtype"),
            quantization=_text(contents, "quantization"),
        ),
        modelfs=_ModelFiles(diffIds=tuple(layer.digest for layer in layers)),
    )


def _suffixes(contents: Contents) -> Iterator[str]:
    for file in contents.engine.manifest.files:
        yield PurePosixPath(file.path).suffix.lower()


def _text(contents: Contents, field: str) -> str | None:
    """A field of the recipe; None if the recipe does not have it, or says `none`."""
    value = contents.intent.recipe.get(field)
    return value if isinstance(value, str) and value != "none" else None
