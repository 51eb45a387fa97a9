"""Which container image carries which TensorRT-LLM: a file, `images.toml` beside this module or one of your own."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from infra.errors import SettingsError

OWN_TABLE = Path(__file__).with_name("images.toml")
_FIELDS = {"reference", "tensorrt_llm", "digest"}


@dataclass(frozen=True)
class Image:
    """`reference` is `repository:tag`; `digest` is `sha256:…`, or empty where nobody has pinned it."""

    reference: str
    tensorrt_llm: Version
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.reference}@{self.digest}" if self.digest else self.reference


def images(table: Path) -> Mapping[Version, Image]:
    """The image of each version; of several the last in the file. Raises SettingsError."""
    try:
        document = tomllib.loads(table.read_text("utf-8"))
        found = [_image(entry) for entry in document["image"]]
    except OSError as error:
        raise SettingsError(f"the list of images cannot be read: {error}", hint="see ENGINEHOUSE_IMAGES") from error
    except (tomllib.TOMLDecodeError, InvalidVersion, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{table} is not a list of images: {error}", hint=f"its form is that of {OWN_TABLE}"
        ) from error
    return {image.tensorrt_llm: image for image in found}


def _image(entry: dict[str, Any]) -> Image:
    if unknown := sorted(entry.keys() - _FIELDS):
        raise ValueError(f"unknown field {', '.join(unknown)}")
    digest = str(entry.get("digest", ""))
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is no digest")
    return Image(str(entry["reference"]), Version(entry["tensorrt_llm"]), digest)
