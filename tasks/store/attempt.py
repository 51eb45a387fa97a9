"""The attempt that a folder is uploaded as: a fresh one, or the one that a killed upload of the same files began.

Its name lies in a note beside the folder, locked by who uploads: the lock goes with its process, and a stopped process
keeps it. So no two processes ever write the same attempt.
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

_RESUME_SECONDS = 86400.0
"""An older attempt is left to garbage collection, which may be at it already."""


@dataclass(frozen=True)
class Attempt:
    name: str
    resumed: bool


@contextmanager
def attempt_for(folder: Path, may_resume: Callable[[str], bool]) -> Generator[Attempt]:
    """The attempt to upload `folder` as. What an error or a kill left of it is taken up by the next call.

    Not where the files are others by now (size, time, inode), where another process is at it, or `may_resume` says no.
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
        recent = time.time() - os.fstat(file.fileno()).st_mtime < _RESUME_SECONDS
        resumed = noted == state and recent and may_resume(name)
        if not resumed:
            name = uuid.uuid4().hex
            file.truncate(0)
            file.write(f"{name} {state}")
            file.flush()
        yield Attempt(name, resumed)
        file.truncate(0)  # before it goes: whoever has it open and waits for nothing but the lock finds it empty
        note.unlink(missing_ok=True)


def _state(folder: Path) -> str:
    """A digest of which files there are and when they were last written."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest.update(f"{path.relative_to(folder)}\0{status.st_size} {status.st_mtime_ns} {status.st_ino}\0".encode())
    return digest.hexdigest()
