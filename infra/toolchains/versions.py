"""The versions in a toolchain that decide what it makes."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Versions(BaseModel):
    """What is installed beside each other. A version that is not installed is empty."""

    model_config = ConfigDict(frozen=True)

    tensorrt_llm: str
    tensorrt: str
    cuda: str
    """The CUDA version that Torch was compiled for: `12.8`. It is not the driver's."""
    torch: str
    modelopt: str
    """Of nvidia-modelopt, or of nvidia-ammo, as it was called before."""
    transformers: str
    python: str

    @property
    def by_name(self) -> Mapping[str, str]:
        """Every version, empty ones too."""
        return {name: getattr(self, name) for name in Versions.model_fields}

    @classmethod
    def taken_from(cls, versions: Mapping[str, str]) -> Versions:
        """Those of a mapping that leaves out what is not installed."""
        return Versions(**{name: versions.get(name, "") for name in Versions.model_fields})
