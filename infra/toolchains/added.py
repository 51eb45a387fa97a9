"""Environments that a person has asked for, `enginehouse toolchain add VERSION`: made, checked and listed.

A version with pins is made from them, as a worker makes it by itself. For another one pip resolves what tensorrt_llm of
that version asks for, from the ordinary index and ENGINEHOUSE_TOOLCHAIN_INDEX together, and what it found is written
down as pins. A worker uses such an environment, and never makes one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from infra.errors import SettingsError
from infra.toolchains.interpreter import InterpreterToolchain
from infra.toolchains.pinned import (
    COMPLETE,
    PIN_FILES,
    SECOND_INDEX,
    environment,
    installing,
    locked,
    pins_file,
    read,
    variables_of_the_ordinary_index,
)
from infra.toolchains.toolchain import ToolchainReport, require

FROM_INDEX = "index"
"""What is in place of a pins file's digest where an environment was made without pins."""

FOUND_PINS = "pins.txt"
"""What pip chose for an environment without pins, in the form of a pins file."""

_REPORT = "report.json"
_INSTALLED = "installed.json"
# The newest interpreter that each release's wheels are for. Source: the file names on NVIDIA's index.
_PYTHONS = (("0.17", "3.12"), ("0", "3.10"))


@dataclass(frozen=True)
class Environment:
    """An environment of `version` below the folder of toolchains.

    `made_from` is what it was or would be made from; `state` `changed` says that its pins are others by now, so that
    its next use makes it anew. `report` is what was found in it when it was added.
    """

    version: str
    path: Path
    made_from: Literal["pins", "index"]
    state: Literal["ready", "changed", "half-made", "absent"]
    report: ToolchainReport | None = None


def add(folder: Path, version: str, index: str, examples: Path | None, pins_folder: Path = PIN_FILES) -> Environment:
    """Make the environment of `version` below `folder` unless it is there, and check that it holds that version.

    Raises what `pinned.environment` raises but for missing pins, and what a toolchain's report raises.
    """
    if pins_file(pins_folder, version).is_file():
        place = environment(folder, version, index, pins_folder)
        return _checked(place, version, "pins", examples)
    place = folder / str(Version(version))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{place.name}.lock") as lock:
        if _complete(place) != FROM_INDEX:
            shutil.rmtree(place, ignore_errors=True)
            _make(place, version, index, lock)
        (place / COMPLETE).unlink(missing_ok=True)
        checked = _checked(place, version, "index", examples)
        (place / COMPLETE).write_text(FROM_INDEX)
    return checked


def listed(folder: Path, pins_folder: Path = PIN_FILES) -> Iterator[Environment]:
    """Every environment below `folder`, and those that pins could make, in the order of their versions."""
    names = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set[str]()
    names |= {path.stem for path in pins_folder.glob("*.txt")}
    for version in sorted(filter(_is_version, names), key=Version):
        place, pins = folder / version, pins_file(pins_folder, version)
        digest = read(pins, version).digest if pins.is_file() else FROM_INDEX
        complete = _complete(place)
        yield Environment(
            version,
            place,
            "pins" if pins.is_file() else "index",
            "ready" if complete == digest else "changed" if complete else "half-made" if place.is_dir() else "absent",
            _found(place) if complete else None,
        )


def _make(place: Path, version: str, index: str, lock: int) -> None:
    if not index:
        raise SettingsError(
            f"there are no pins for TensorRT-LLM {version}, and ENGINEHOUSE_TOOLCHAIN_INDEX is not set",
            hint="set it to the URL of NVIDIA's package index, or of your mirror of it",
            code="toolchain-index",
        )
    python = next(python for since, python in _PYTHONS if Version(version) >= Version(since))
    ordinary = variables_of_the_ordinary_index()
    # A variable, since a URL may hold a password, and arguments are public.
    extra = " ".join(filter(None, (ordinary.get("PIP_EXTRA_INDEX_URL"), index)))
    both = {**ordinary, "PIP_EXTRA_INDEX_URL": extra}
    with installing(place, python, lock) as install:
        install(["--report", str(place / _INSTALLED), f"tensorrt_llm=={version}"], both)
    (place / FOUND_PINS).write_text(_pins(json.loads((place / _INSTALLED).read_text()), python, version, index))


def _pins(installed: Any, python: str, version: str, index: str) -> str:
    """What pip has installed as a pins file: the packages of each index, with the hashes that pip has checked."""
    ordinary, second = list[str](), list[str]()
    for package in installed["install"]:
        found, metadata = package["download_info"], package["metadata"]
        digest = found["archive_info"]["hashes"]["sha256"]
        line = f"{metadata['name'].lower()}=={metadata['version']} --hash=sha256:{digest}"
        (second if _host(found["url"]) == _host(index) else ordinary).append(line)
    head = [f"# TensorRT-LLM {version}, as pip resolved it.", f"# python: {python}"]
    return "\n".join([*head, *sorted(ordinary), SECOND_INDEX, *sorted(second)]) + "\n"


def _host(url: str) -> str:
    """`host:port`, without the name and password that may stand before."""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2]


def _checked(place: Path, version: str, made_from: Literal["pins", "index"], examples: Path | None) -> Environment:
    report = InterpreterToolchain(place / "bin/python", examples).report()
    require(report, version)
    (place / _REPORT).write_text(report.model_dump_json())
    return Environment(str(Version(version)), place, made_from, "ready", report)


def _found(place: Path) -> ToolchainReport | None:
    path = place / _REPORT
    return ToolchainReport.model_validate_json(path.read_text()) if path.is_file() else None


def _complete(place: Path) -> str:
    path = place / COMPLETE
    return path.read_text() if path.is_file() else ""


def _is_version(name: str) -> bool:
    try:
        return str(Version(name)) == name
    except InvalidVersion:
        return False
