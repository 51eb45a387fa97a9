"""The environment of a toolchain's programs: an allow-list, so that no credential reaches them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from infra.processes.background import MARKER

# OPAL_PREFIX: NVIDIA's images moved Open MPI, which does not find its files without it.
_INHERITED = (
    "PATH",
    "LD_LIBRARY_PATH",
    "OPAL_PREFIX",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    MARKER,
)

# Everything is read from the work folder; nothing that it lacks may be fetched.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def fixed(folder: Path) -> dict[str, str]:
    """The variables that every tool gets: caches and settings in its work folder, and no hub.

    USER is set since Torch looks up the user's name, which fails in a container whose passwd file lacks the user.
    """
    return {"HOME": str(folder), "USER": "enginehouse", **_OFFLINE}


def inherited(*names: str) -> Mapping[str, str]:
    """The variables of this process that a tool may see; with `names`, only those."""
    return {name: os.environ[name] for name in names or _INHERITED if name in os.environ}
