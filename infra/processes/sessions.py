"""Servers as processes: ports for them, a start in a session of their own, and an end for all of it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

# Below Linux's default range for outgoing connections (net.ipv4.ip_local_port_range starts at 32768), so that
# a port chosen now is not taken by somebody's client socket while the server is down.
_LOWEST_PORT = 20000
_HIGHEST_PORT = 32767


def free_ports(count: int, lowest: int = _LOWEST_PORT, highest: int = _HIGHEST_PORT) -> list[int]:
    """`count` different TCP ports that nobody uses on 127.0.0.1 now. Raises OSError if there are too few."""
    candidates = random.sample(range(lowest, highest + 1), highest + 1 - lowest)
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            break
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    if len(ports) < count:
        raise OSError(f"only {len(ports)} of {count} wanted ports are free on 127.0.0.1")
    return ports


def start_session(
    command: Sequence[str], *, log: Path, folder: Path, environment: Mapping[str, str], umask: int = -1
) -> subprocess.Popen[bytes]:
    """Start `command` in `folder`, in a session of its own, with exactly `environment`. Its output goes to `log`.

    `umask` is the caller's where none is given.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
            umask=umask,
            # A shell starts `command &` with SIGINT ignored, and a Prefect worker that inherits this
            # never ends on SIGTERM.
            preexec_fn=_heed_interrupts,
        )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def terminate(process: subprocess.Popen[bytes] | int, grace_s: float) -> None:
    """End the session that `process` leads: SIGTERM, and SIGKILL for those left after `grace_s` s.

    The leader must have been started with `start_new_session=True`. A pid that leads no session ends nothing, so the
    stale pid of a record cannot end a stranger's child. Returns when no member is left.
    It ends the session and not the process group, since mpirun gives each of its children a group of its own.
    """
    session = process if isinstance(process, int) else process.pid
    _signal(session, signal.SIGTERM)
    if not _wait_until_gone(process, session, grace_s):
        _signal(session, signal.SIGKILL)
        _wait_until_gone(process, session, 10.0)


def _signal(session: int, number: signal.Signals) -> None:
    for member in _members(session):
        try:
            os.kill(member, number)
        except ProcessLookupError:
            continue


def _wait_until_gone(process: subprocess.Popen[bytes] | int, session: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        if not _members(session):
            if not isinstance(process, int):
                process.poll()  # reaps the leader, which is our child
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _members(session: int) -> list[int]:
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and not _is_over(process):
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _is_over(process: psutil.Process) -> bool:
    # A zombie waits for its parent, not for us; but its other threads may still be ending and hold ports.
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
