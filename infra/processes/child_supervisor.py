"""The program that leads the session of one external tool and lets nothing of it outlive Enginehouse.

`child.py` beside this starts it with a socket as file descriptor 0. An order comes in (one line of JSON), a report
goes out (likewise). When Enginehouse's end of the socket closes, for whatever reason, everything is ended that the tool
has started; after the tool's own end likewise.

As child subreaper (prctl(2)) this process inherits every orphan below it, whatever session or group it is in. So
once it has no child left, no descendant is left either.

Standard library only: it runs with `-I -S`, which starts in 30 ms and needs no environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

KILL_S = 10.0
"""How long SIGKILL may take. A process that is left then hangs in the kernel, and ends when the kernel lets it."""

DOCKER_S = 10.0
"""How long one docker command may take."""

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Process(NamedTuple):
    """What /proc/PID/stat says. `started` is in clock ticks after boot; pid and `started` name one process for ever."""

    parent: int
    session: int
    started: int
    alive: bool


def process_table() -> dict[int, Process]:
    """Every process of this machine, by pid."""
    table: dict[int, Process] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_bytes()
        except OSError:  # it has just ended
            continue
        # Fields 3 and up of proc(5). The name before them is in parentheses and may hold some itself.
        fields = text[text.rindex(b")") + 2 :].split()
        table[int(folder.name)] = Process(
            parent=int(fields[1]),
            session=int(fields[3]),
            started=int(fields[19]),
            # The first thread may be over while others run on.
            alive=fields[0] not in (b"Z", b"X") or int(fields[17]) > 1,
        )
    return table


def descendants(roots: Iterable[int], table: Mapping[int, Process]) -> set[int]:
    """The pids below `roots`."""
    children: dict[int, list[int]] = {}
    for pid, process in table.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        below = [pid for pid in children.get(waiting.pop(), ()) if pid not in found]
        found.update(below)
        waiting.extend(below)
    return found


def remove_container(docker: str, container: str, environment: Mapping[str, str], timeout_s: float = DOCKER_S) -> None:
    """Kill and remove `container`, whose `docker run` may have died without it. Takes at most 2 * `timeout_s`."""
    for action in (["kill"], ["rm", "--force"]):
        # A container that is gone already is an error to docker.
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [docker, *action, container],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                timeout=timeout_s,
                check=False,
            )


def _main() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signals = _signals()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    channel = _channel()
    with channel.makefile("rb") as orders:
        line = orders.readline()
    if not line.endswith(b"\n"):  # Enginehouse died before it had written the order
        return
    order = json.loads(line)
    environment: dict[str, str] = order["environment"]

    started = time.monotonic()
    command = _start(order["command"], order["folder"], environment, channel)
    exit_code = _wait(command, channel, signals)
    seconds = time.monotonic() - started
    left = _end_descendants(order["grace_s"])
    if order["container"]:
        remove_container(order["command"][0], order["container"], environment)
        left = _end_descendants(0)
    _send(channel, {"exit_code": exit_code, "seconds": seconds, "left": sorted(left)})


def _signals() -> int:
    """A descriptor from which the numbers of arriving signals can be read.

    A handler, unlike an ignored signal, is not inherited by the tool.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_ENDING_SIGNALS):
        signal.signal(number, _heed)
    return reading


def _heed(number: int, frame: FrameType | None) -> None:
    """Do nothing: the number went to the descriptor."""


def _channel() -> socket.socket:
    """The socket of descriptor 0, moved to one that nobody inherits."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return channel


def _start(command: list[str], folder: str, environment: Mapping[str, str], channel: socket.socket) -> int:
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, folder, environment, channel, supervisor)
    return pid


def _become(
    command: list[str], folder: str, environment: Mapping[str, str], channel: socket.socket, supervisor: int
) -> NoReturn:
    what = f"cannot enter {folder}"
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before that took hold
            os._exit(127)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        os.chdir(folder)
        what = f"cannot start {command[0]}"
        os.execvpe(command[0], command, environment)
    except BaseException as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _send(channel, {"refused": f"{what}: {reason}"})
    finally:
        os._exit(127)


def _wait(command: int, channel: socket.socket, signals: int) -> int | None:
    """The exit code with which `command` ended (negative: a signal), or None when everything is to be ended."""
    while True:
        ready, _, _ = select.select([channel, signals], [], [])
        if channel in ready:
            return None
        arrived = os.read(signals, 4096)
        for pid, exit_code in _ended_children():
            if pid == command:
                return exit_code
        if any(number in arrived for number in _ENDING_SIGNALS):
            return None


def _ended_children() -> Iterator[tuple[int, int]]:
    """Each child that has ended, with its exit code. Raises ChildProcessError if there is no child at all."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _end_descendants(grace_s: float) -> set[int]:
    """SIGTERM every descendant, and SIGKILL those left after `grace_s` s. Returns the pids that even SIGKILL left."""
    asked: set[int] = set()
    started = time.monotonic()
    while True:
        try:
            for _ in _ended_children():
                pass
        except ChildProcessError:
            return set()
        left = descendants([os.getpid()], process_table())
        waited = time.monotonic() - started
        if waited > grace_s + KILL_S:
            return left
        kill = waited >= grace_s
        for pid in left if kill else left - asked:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        asked |= left
        time.sleep(0.02)


def _send(channel: socket.socket, document: Mapping[str, object]) -> None:
    with suppress(OSError):  # nobody is left to read it
        channel.sendall(json.dumps(document).encode() + b"\n")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


if __name__ == "__main__":
    _main()
