"""The attempt that a folder is uploaded as: a fresh one, or the one that a killed upload of the same files began.

The attempt's name is in a note beside the folder, which the uploading process locks. The lock goes with the process,
and a process that is only stopped keeps it. So no two processes ever write the same attempt.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RESUME_SECONDS = 86400.0
"""An older attempt is left to garbage collection, which may already be removing it."""


@dataclass(frozen=True)
class Attempt:
    """`resumed`: an earlier upload may have sent some of its files already."""

    name: str
    resumed: bool


@contextmanager
def attempt_for(folder: Path, may_resume: Callable[[str], bool]) -> Generator[Attempt]:
    """The attempt to upload `folder` as. If the block fails or is killed, the next call resumes the same attempt.

    It starts a fresh one if a file has changed (size, time, inode), if another process is uploading the folder, or if
    `may_resume`, called with the attempt's name, says no.
    """
    note, state = folder.with_name(f"{folder.name}.attempt"), _state(folder)
    with note.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Attempt(uuid.uuid4().hex, resumed=False)
            return
        file.seek(0)
        name, _, noted = file.read().partition(" ")
        recent = time.time() - os.fstat(file.fileno()).st_mtime < RESUME_SECONDS
        resumed = noted == state and recent and may_resume(name)
        if not resumed:
            name = uuid.uuid4().hex
            file.truncate(0)
            file.write(f"{name} {state}")
            file.flush()
        yield Attempt(name, resumed)
        file.truncate(0)  # before it is removed: a process that opened it meanwhile and gets the lock finds it empty
        note.unlink(missing_ok=True)


def _state(folder: Path) -> str:
    """A digest of the files' names, sizes, times and inodes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest.update(f"{path.relative_to(folder)}\0{status.st_size} {status.st_mtime_ns} {status.st_ino}\0".encode())
    return digest.hexdigest()
