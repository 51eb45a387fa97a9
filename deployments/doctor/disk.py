"""Room for workspaces and releases on this machine's disk, and for Triton's shared memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from deployments.doctor.check import Check, Finding, fine, notice, wrong
from deployments.stack.lifecycle import NEEDED_FREE_BYTES
from infra.settings import Settings

_SHARED = Path("/dev/shm")
_NEEDED_SHARED_BYTES = 128 << 20
"""Docker gives a container 64 MiB, which one process of Triton's Python backend takes to begin with."""


def _look(settings: Settings) -> Iterator[Finding]:
    yield disk(settings.home, NEEDED_FREE_BYTES)
    if _SHARED.is_dir() and (size := shutil.disk_usage(_SHARED).total) < _NEEDED_SHARED_BYTES:
        yield notice(
            "shared-memory",
            f"{_SHARED} has {size >> 20} MiB, too little for a Triton with several models",
            "docker run --shm-size=16g, or an emptyDir of medium Memory on Kubernetes",
        )


def disk(home: Path, needed: int) -> Finding:
    """The folder of settings.home, which need not exist yet; `needed` in bytes."""
    folder = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(folder, os.W_OK):
        what = f"this user may not write to {folder}, where ENGINEHOUSE_HOME={home} lies"
        return wrong("disk-denied", what, "export ENGINEHOUSE_HOME=FOLDER, one of yours")
    free = shutil.disk_usage(folder).free
    what = f"{free / 2**30:.1f} GiB are free for {home}"
    if free >= needed:
        return fine(what)
    more = f"{what}, and less than {needed / 2**30:.1f} GiB is too little for the smallest model"
    return wrong("disk-space", more, "free some space, or: export ENGINEHOUSE_HOME=FOLDER, on another disk")


CHECK = Check("disk", "free space for ENGINEHOUSE_HOME, and shared memory", _look)
