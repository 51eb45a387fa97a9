"""The flags of each TensorRT-LLM version (`cli.json`), and the keys of the files that it writes (`configs.json`).

A row holds for its range of versions, first and last included. A version without a row lacks the flag or key.
`cli.json` lists under `sources` where the rows were read, and which are proven from that release itself. The keys were
read at the same commits, for 0.17 to 1.1 at 0.17.0.post1 and for 1.2.1 in the copy of 1.3.0rc3.
"""

from __future__ import annotations

import argparse
import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Release:
    """What is installed beside one TensorRT-LLM version."""

    tensorrt: str
    torch: str
    cuda: str
    """The version that Torch was compiled for."""
    modelopt: str
    transformers: str


# TensorRT, Torch and CUDA as in the Triton container of the release, or, for 0.8 and 0.9, as its wheel pins them.
# ModelOpt (in 0.8 and 0.9 its forerunner ammo) and transformers are as pinned if that is known, and plausible if not.
RELEASES: Mapping[str, Release] = {
    "0.8.0": Release("9.2.0.post12.dev5", "2.1.2", "12.1", "0.7.4", "4.36.1"),
    "0.9.0": Release("9.3.0.post12.dev1", "2.2.2", "12.1", "0.7.4", "4.38.2"),
    "0.10.0": Release("10.0.1", "2.3.0a0", "12.4", "0.11.2", "4.38.2"),
    "0.11.0": Release("10.1.0", "2.4.0a0", "12.4", "0.13.1", "4.38.2"),
    "0.12.0": Release("10.3.0", "2.4.0a0", "12.5", "0.15.1", "4.42.4"),
    "0.13.0": Release("10.4.0", "2.4.0a0", "12.5", "0.15.1", "4.42.4"),
    "0.14.0": Release("10.4.0", "2.4.0a0", "12.5", "0.17.0", "4.45.1"),
    "0.15.0": Release("10.6.0", "2.5.0a0", "12.6", "0.19.0", "4.45.1"),
    "0.16.0": Release("10.7.0", "2.6.0a0", "12.6", "0.21.0", "4.45.1"),
    "0.17.0": Release("10.8.0.43", "2.6.0a0", "12.8", "0.23.0", "4.45.1"),
    "0.18.2": Release("10.9.0.34", "2.7.0a0", "12.8", "0.25.0", "4.48.3"),
    "0.19.0": Release("10.9.0.34", "2.7.0a0", "12.8", "0.27.0", "4.51.0"),
    "0.20.0": Release("10.10.0.31", "2.7.0a0", "12.9", "0.29.0", "4.51.0"),
    "0.21.0": Release("10.11.0.33", "2.8.0a0", "12.9", "0.31.0", "4.51.0"),
    "1.0.0": Release("10.11.0.33", "2.8.0a0", "12.9", "0.31.0", "4.53.1"),
    "1.1.0": Release("10.13.3.9", "2.9.0a0", "13.0", "0.33.0", "4.55.0"),
    "1.2.1": Release("10.14.1.48", "2.10.0a0", "13.1", "0.37.0", "4.57.3"),
}
VERSIONS = tuple(RELEASES)
TOOLS = ("convert_checkpoint.py", "quantize.py", "trtllm-build", "run.py")
"""The tools of every version. Networks with heads that guess have converters of their own: `heads.TOOLS`."""


def numbers(version: str) -> tuple[int, ...]:
    """`0.12.0` as numbers that can be compared."""
    return tuple(map(int, version.split(".")))


class KVCacheType(enum.Enum):
    """Takes its own names in any case. argparse names the class in its errors."""

    CONTINUOUS = "continuous"
    PAGED = "paged"
    DISABLED = "disabled"

    @classmethod
    def _missing_(cls, value: object) -> KVCacheType | None:
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


_TYPES: Mapping[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float": float,
    "KVCacheType": KVCacheType,
    # The real one is a lambda too, which argparse would name in an error. It takes every string.
    "bool_string": lambda text: text.lower() in ("yes", "true", "t", "1"),
}


def flags(tool: str, version: str) -> dict[str, dict[str, Any]]:
    """The row of each flag that `tool` has, by its first name."""
    return _rows(_table("cli.json")["tools"][tool], version)


def keys(section: str, version: str) -> dict[str, Any]:
    """The keys of a section of `configs.json`, each with its default."""
    return {key: row.get("default") for key, row in _rows(_table("configs.json")[section], version).items()}


def parser(tool: str, version: str) -> argparse.ArgumentParser:
    """A parser that takes and refuses what the version's own does, in the same words. It has no help texts.

    Flags are in the newest version's order. If a beginning fits several flags of an older version, the error names the
    same flags in another order.
    """
    made = argparse.ArgumentParser(prog=tool)
    for flag, row in flags(tool, version).items():
        options: dict[str, Any] = {name: row[name] for name in ("nargs", "const", "required", "dest") if name in row}
        if row.get("switch"):
            options["action"] = row.get("action", "store_true")
        else:
            options["type"] = _TYPES[row.get("type", "str")]
            # argparse recognizes this one by identity.
            options["default"] = argparse.SUPPRESS if row.get("default") == argparse.SUPPRESS else row.get("default")
            if "choices" in row:
                options["choices"] = row["choices"]
            if row.get("action") == "BooleanOptionalAction":
                del options["type"]
                options["action"] = argparse.BooleanOptionalAction
            elif "action" in row:
                options["action"] = row["action"]
        made.add_argument(flag, *row.get("aliases", ()), **options)
    return made


def _rows(table: Mapping[str, Sequence[dict[str, Any]]], version: str) -> dict[str, dict[str, Any]]:
    wanted = numbers(version)
    found: dict[str, dict[str, Any]] = {}
    for name, rows in table.items():
        for row in rows:
            first, last = row["versions"]
            if numbers(first) <= wanted <= numbers(last):
                found[name] = row
    return found


@cache
def _table(name: str) -> dict[str, Any]:
    return json.loads((_FOLDER / name).read_text())
