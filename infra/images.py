"""Which container image has which TensorRT-LLM, by a file: `images.toml` beside this module, or one of your own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version
from pydantic import Field, ValidationError

from infra.errors import SettingsError
from infra.frozen import Spec, problems

OWN_TABLE = Path(__file__).with_name("images.toml")


@dataclass(frozen=True)
class Image:
    """`reference` is `repository:tag`; `digest` is `sha256:…`, or empty if nobody has pinned it."""

    reference: str
    tensorrt_llm: Version
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.reference}@{self.digest}" if self.digest else self.reference


class _Entry(Spec):
    reference: str
    tensorrt_llm: str
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")


class _Table(Spec):
    image: tuple[_Entry, ...]


def images(table: Path) -> Mapping[Version, Image]:
    """The image of each version; of several the last in the file. Raises SettingsError."""
    try:
        entries = _Table.model_validate(tomllib.loads(table.read_text("utf-8"))).image
        found = [Image(entry.reference, Version(entry.tensorrt_llm), entry.digest) for entry in entries]
    except OSError as error:
        raise SettingsError(f"the list of images cannot be read: {error}", hint="see ENGINEHOUSE_IMAGES") from error
    except (ValueError, InvalidVersion) as error:  # TOML's and pydantic's errors are ValueErrors too
        reason = problems(error) if isinstance(error, ValidationError) else error
        raise SettingsError(
            f"{table} is not a list of images: {reason}", hint=f"its form is that of {OWN_TABLE}"
        ) from error
    return {image.tensorrt_llm: image for image in found}
