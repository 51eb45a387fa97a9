"""Which folder of this machine's disk a process works in: a named one, or a fresh one while another process has that.

The store's lease of an identity keeps two builds apart while it is renewed. A process that was stopped for longer loses
it and wakes up: it must not find its folders changed by its successor on the same machine, or change those. So a
process locks its folder, and the lock goes with the process. What killed processes left, the next one goes on with, or
removes after a grace time.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from infra.files import remove_tree
from tasks.store.attempt import RESUME_SECONDS

GRACE_SECONDS = RESUME_SECONDS
"""The folder of a killed process stays for as long as its upload can be gone on with."""

_NAME = re.compile(r"(?P<folder>[0-9a-f]{64}(\.[0-9a-f]{32})?)(\.lock)?")
"""Of folders that are named by an identity, of those beside them, and of their locks. Nothing else is ever removed."""


@dataclass(frozen=True)
class _Claim:
    folder: Path
    lock: Path
    file: TextIO
    """Locked while it is open."""

    def give_up(self) -> None:
        self.lock.unlink(missing_ok=True)
        self.file.close()


# Of this process, which may ask for one folder in several steps. A second lock of its own would shut it out.
_claims: dict[Path, _Claim] = {}
_guard = threading.Lock()


def claimed(root: Path) -> Path:
    """The folder to use as `root`; the same one for all of this process. No other process uses it meanwhile."""
    with _guard:
        if root not in _claims:
            remove_left(root.parent)
            claim = _take(root) or _take(root.with_name(f"{root.name}.{uuid.uuid4().hex}"))
            assert claim is not None  # nobody else knows a fresh name
            for partial in claim.folder.glob("*/*.partial"):  # of a killed process
                remove_tree(partial)
            _claims[root] = claim
        return _claims[root].folder


def release(root: Path) -> None:
    """Let others have the folder, which was removed."""
    with _guard:
        if claim := _claims.pop(root, None):
            claim.give_up()


def remove_left(parent: Path, grace_seconds: float = GRACE_SECONDS) -> None:
    """Remove the folders of killed processes that nobody has used for `grace_seconds`."""
    found = [_NAME.fullmatch(path.name) for path in parent.glob("*")]
    for folder in {parent / match["folder"] for match in found if match is not None}:
        if time.time() - _last_use(folder) < grace_seconds or (claim := _take(folder)) is None:
            continue
        with suppress(OSError):  # the rest is tried again by the next process
            remove_tree(folder)
        claim.give_up()


def _take(folder: Path) -> _Claim | None:
    """Lock the folder; None if another process has it."""
    lock = folder.with_name(f"{folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                os.utime(lock)
                return _Claim(folder, lock, file)
        file.close()  # whoever had it has removed the file meanwhile


def _last_use(folder: Path) -> float:
    """When the folder was claimed, or a step in it ended, by this machine's clock."""
    places = (folder.with_name(f"{folder.name}.lock"), folder, *folder.glob("*"), *folder.glob("*/*"))
    times: list[float] = []
    for place in places:
        with suppress(FileNotFoundError):
            times.append(place.stat().st_mtime)
    return max(times, default=time.time())
