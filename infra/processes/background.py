"""Processes that outlive the command that started them.

Each is known by its record (pid and time of creation), which finds it again, and by a variable in its environment,
MARKER, which its children inherit and which no stranger has. So a recycled pid is never taken for ours, and children
of a killed parent are found too.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

MARKER = "ENGINEHOUSE_STACK"
"""The variable that names the home to which a process belongs."""

_LARGE_LOG_BYTES = 16 << 20
_LOG_TAIL_BYTES = 2000
# psutil derives the time of creation from the boot time, which follows corrections of the clock.
_CREATION_TOLERANCE_S = 2.0


def reap(process: subprocess.Popen[bytes]) -> None:
    """Let `process` run on alone: should it end while this program lives, it leaves no zombie."""
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()


def rotate(log: Path) -> None:
    """Move a log of more than 16 MiB aside, over the one moved before. Only while nobody writes to it."""
    if log.exists() and log.stat().st_size > _LARGE_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def tail(log: Path) -> str:
    """The last 2000 bytes of `log`, as text."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()


def write_private(path: Path, document: object) -> None:
    """Replace `path` by `document` as JSON in one step, readable by this user alone."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file, indent=2)
    fresh.replace(path)


def remember(record: Path, pid: int, ports: Mapping[str, int]) -> None:
    """Write the record by which `find` knows process `pid` again."""
    created = psutil.Process(pid).create_time()
    write_private(record, {"pid": pid, "created": created, "ports": dict(ports)})


def find(record: Path, home: Path) -> psutil.Process | None:
    """The living process that `record` describes, or None."""
    try:
        remembered = json.loads(record.read_text())
        process = psutil.Process(remembered["pid"])
        same = abs(process.create_time() - remembered["created"]) < _CREATION_TOLERANCE_S
        return process if same and belongs(process, home) else None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None


def belongs(process: psutil.Process, home: Path) -> bool:
    """Whether `process` lives and was started, at first or second hand, for the stack of `home`."""
    try:
        return process.environ().get(MARKER) == str(home)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie counts as NoSuchProcess
        return False


def members(home: Path) -> list[psutil.Process]:
    """Every process that belongs to the stack of `home`, without the caller."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and belongs(p, home)]


def end_members(home: Path, grace_s: float) -> None:
    """End every member: SIGTERM, and SIGKILL for those left after `grace_s` s. Returns when none is left."""
    left = members(home)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(left, timeout=grace_s)
    while left := members(home):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=grace_s)


def taken(ports: Iterable[int]) -> dict[int, psutil.Process | None]:
    """Which of `ports` on 127.0.0.1 are in use, and by which process; None if the system does not show it."""
    busy = [port for port in ports if not _can_bind(port)]
    if not busy:
        return {}
    owners: dict[int, psutil.Process | None] = dict.fromkeys(busy)
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port in owners and connection.pid:
            with suppress(psutil.NoSuchProcess):
                owners[connection.laddr.port] = psutil.Process(connection.pid)
    return owners


def describe(process: psutil.Process | None) -> str:
    """`process` in words, for a message."""
    if process is None:
        return "a process that this user cannot see"
    try:
        return f"process {process.pid} ({process.name()})"
    except psutil.NoSuchProcess:
        return f"process {process.pid}, which is ending"


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: what a closed connection leaves for a minute does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
