"""What builds and runs a release, as its manifests have it: versions by name, measured where a step measured them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.export.contents import Contents
from tasks.store.artifact import Manifest
from tasks.store.names import is_identity

PartKind = Literal["framework", "library", "platform", "container", "device", "device-driver"]
"""As CycloneDX calls types of components."""

_KINDS: Mapping[str, PartKind] = {
    "tensorrt_llm": "framework",
    "torch": "framework",
    "cuda": "platform",
    "python": "platform",
    "container": "container",
    "driver": "device-driver",
    "gpu": "device",
}
"""All others are libraries."""
_PACKAGES: Mapping[str, str] = {
    "tensorrt_llm": "tensorrt-llm",
    "tensorrt": "tensorrt",
    "torch": "torch",
    "modelopt": "nvidia-modelopt",
    "transformers": "transformers",
    "gguf": "gguf",
    "xllamacpp": "xllamacpp",
}
"""What Python's package index calls them. Others are no packages there."""
_NO_PARTS = frozenset({"architecture", "gpus"})
"""They say which GPU, and how many: `gpu` is the part."""


@dataclass(frozen=True)
class RuntimePart:
    """One part of the runtime. The version of a container is the digest of its image, `sha256:…`; a GPU has none."""

    name: str
    version: str
    kind: PartKind

    @property
    def sha256(self) -> str:
        """Of the image of a container; empty for other parts."""
        digest = self.version.removeprefix("sha256:")
        return digest if self.kind == "container" and is_identity(digest) else ""

    @property
    def purl(self) -> str:
        """Its package URL; empty if it is no package."""
        package = _PACKAGES.get(self.name)
        return "" if package is None else f"pkg:pypi/{package}@{self.version}"


def runtime_of(contents: Contents) -> tuple[RuntimePart, ...]:
    """The parts in the order of their names. What the engine's build measured counts before what was planned."""
    artifacts = [*reversed(contents.made_of), contents.repository, contents.engine]
    made = [artifact.manifest for artifact in artifacts if artifact.ref.kind != "snapshot"]
    values: dict[str, str] = {}
    for manifest in made:
        values.update(_planned(manifest))
    for manifest in made:
        values.update(manifest.producer.runtime)
    return tuple(_parts(values))


def _planned(manifest: Manifest) -> Iterator[tuple[str, str]]:
    fields = manifest.identity.get("fields")
    runtime = fields.get("runtime") if isinstance(fields, dict) else None
    if isinstance(runtime, dict):
        yield from ((name, value) for name, value in runtime.items() if isinstance(value, str) and value)


def _parts(values: Mapping[str, str]) -> Iterator[RuntimePart]:
    for name, value in sorted(values.items()):
        if name in _NO_PARTS:
            continue
        kind = _KINDS.get(name, "library")
        yield RuntimePart(value, "", kind) if kind == "device" else RuntimePart(name, value, kind)
