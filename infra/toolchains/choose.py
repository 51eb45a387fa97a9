"""Which toolchain the setting ENGINEHOUSE_TOOLCHAIN names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from infra.errors import SettingsError
from infra.settings import Settings
from infra.toolchains import pinned
from infra.toolchains.docker import DockerToolchain
from infra.toolchains.interpreter import InterpreterToolchain
from infra.toolchains.toolchain import Toolchain

# The interpreter of the image that a worker runs in. Enginehouse has a virtual environment of its own beside it.
_IMAGE_PYTHON = Path("/usr/bin/python3")

IMAGE_DIGEST = "ENGINEHOUSE_CONTAINER_DIGEST"
"""The variable with the digest of a worker's container. Whoever starts it sets it: no process inside can find out."""


def toolchain(settings: Settings, version: str) -> Toolchain:
    """The toolchain for TensorRT-LLM `version`. Use `require` to check its report: it may hold another version.

    Only `venv` depends on `version`. It makes the environment if it is missing, which takes minutes and gigabytes.
    Raises what `pinned.environment` raises, and SettingsError for a setting of no known form.
    """
    kind, colon, place = settings.toolchain.partition(":")
    examples = _absolute(settings.toolchain_examples) if settings.toolchain_examples else None
    if kind == "local" and bool(colon) == bool(place):
        python = _absolute(place) if place else _IMAGE_PYTHON
        return InterpreterToolchain(python, examples, container_digest=_image_digest())
    if kind == "venv" and place:
        return InterpreterToolchain(_absolute(place) / "bin/python", examples)
    if kind == "venv" and not colon:
        folder = pinned.environment(settings.home / "toolchains", version, settings.toolchain_index)
        return InterpreterToolchain(folder / "bin/python", examples)
    if kind == "docker" and place:
        return DockerToolchain(place, examples)
    raise SettingsError(
        f"ENGINEHOUSE_TOOLCHAIN is {settings.toolchain!r}",
        hint="it is local, local:/path/python3, venv, venv:/path or docker:IMAGE@sha256:…",
    )


def _image_digest() -> str:
    digest = os.environ.get(IMAGE_DIGEST, "")
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise SettingsError(f"{IMAGE_DIGEST} is {digest!r}", hint="it is sha256:… with 64 hexadecimal digits")
    return digest


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise SettingsError(f"a path of the toolchain is not absolute: {text}", hint="begin it with /")
    return path
