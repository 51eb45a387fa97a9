"""External tools as children that never outlive Enginehouse: long builds that fork workers, use MPI and CUDA.

    Enginehouse ── socket ── supervisor (leads a session, inherits orphans) ── the tool ── its workers

The supervisor, `child_supervisor.py` beside this, ends everything when its socket closes. The system closes it even
when Enginehouse is killed, and no other child inherits it.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import SettingsError, StepFailed
from infra.processes import child_supervisor
from infra.processes.child_output import Output

# Reactions to `stop`, to the time limit and to a killed supervisor come this late at most.
_POLL_S = 0.1
_SAMPLE_S = 0.5
_HINT_CHARACTERS = 2000


@dataclass(frozen=True)
class Outcome:
    """How a command ended, whatever its exit code.

    `exit_code` is negative when a signal ended the command, as in subprocess. `seconds` is the command's own time,
    without that of ending what it left behind. `tail` is the last 64 KiB of its output.

    `peak_host_bytes` is the largest sum, over all descendants, of PSS: the workers of a build are forks and map the
    same weights, and RSS would count each shared page once a worker. Mapped files count where they are in memory.
    The sum is sampled twice a second, more seldom where counting takes long, so a command that is over before may
    show 0. Processes of other users, and those in a container, do not count. `peak_gpu_bytes` is the largest answer
    of `sample_gpu`, or 0.
    """

    exit_code: int
    seconds: float
    peak_host_bytes: int
    peak_gpu_bytes: int
    tail: str


def run(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout_s: float | None,
    on_line: Callable[[str], None],
    container: str = "",
    sample_gpu: Callable[[frozenset[int]], int] | None = None,
    grace_s: float = 2.0,
    stop: threading.Event | None = None,
) -> Outcome:
    """Run `command` in `folder` with exactly `environment` and nothing on stdin, and wait for its end.

    `on_line` gets each line of stdout and stderr at once, in this thread; '\\r' ends a line too, as progress bars
    write it. `sample_gpu` gets the pids of all descendants twice a second, in another thread, and answers with the
    bytes of GPU memory that these hold. `container` is the name with which `command`, a foreground `docker run`
    whose first word is an absolute path or found in the PATH of `environment`, starts one: it is killed and removed
    at the end. The name must be fresh, since a container of that name goes whoever started it.

    However this function ends, and when Enginehouse is killed, every descendant is ended first: SIGTERM, and
    SIGKILL for who is left after `grace_s` seconds, sessions and groups of their own or not.

    Raises SettingsError `tool-missing` when there is no such folder or program; StepFailed with `step-timeout` after
    `timeout_s` seconds (None: no limit), `step-cancelled` once `stop` is set, `supervisor-lost` when the supervisor
    was ended by somebody else, `processes-left` when not even SIGKILL ended all; and what `on_line` or `sample_gpu`
    raise. The messages show the command and the hints its last output.
    """
    order = {
        "command": list(command),
        "folder": str(folder.absolute()),
        "environment": dict(environment),
        "container": container,
        "grace_s": grace_s,
    }
    child = _Child()
    sampler = _Sampler(child.supervisor.pid, sample_gpu)
    try:
        sampler.start()
        child.send(order)
        interruption = _follow(child, sampler, on_line, timeout_s, stop)
    finally:
        sampler.over.set()
        report = child.end(grace_s)
        if report is None:  # the supervisor was killed
            left = _end_orphans(child.supervisor.pid, sampler.seen)
            if container:
                child_supervisor.remove_container(command[0], container, environment)
            report = _Report(exit_code=None, seconds=0.0, left=left)
        sampler.join(1.0)  # not longer: `sample_gpu` may hang

    tail = child.output.tail()
    name = textwrap.shorten(shlex.join(command), 120, placeholder=" ...")
    last_words = f"its output ends with:\n{tail[-_HINT_CHARACTERS:]}"
    if report.refused:
        raise SettingsError(report.refused, hint="install it, or correct its path or PATH", code="tool-missing")
    if interruption == "step-cancelled":
        raise StepFailed(f"{name} was cancelled", code=interruption, hint=last_words)
    if interruption == "step-timeout" and report.exit_code is None:
        raise StepFailed(
            f"{name} took longer than {timeout_s:g} s",
            code=interruption,
            hint=f"allow it more time, or see what it waited for; {last_words}",
        )
    if report.exit_code is None:
        raise StepFailed(
            f"the supervisor of {name} was ended by somebody else",
            code="supervisor-lost",
            hint=f"dmesg tells whether the system ran out of memory; {last_words}",
            retryable=True,
        )
    if report.left:
        raise StepFailed(
            f"SIGKILL does not end these processes of {name}: {', '.join(map(str, report.left))}",
            code="processes-left",
            hint="they hang in the kernel: dmesg may tell of a GPU or a disk that failed",
        )
    return Outcome(report.exit_code, report.seconds, sampler.peak_host_bytes, sampler.peak_gpu_bytes, tail)


def _follow(
    child: _Child,
    sampler: _Sampler,
    on_line: Callable[[str], None],
    timeout_s: float | None,
    stop: threading.Event | None,
) -> str:
    """Pass the output on until its end, or answer with the error code of what comes before that."""
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while child.pass_on(on_line):
        if sampler.error is not None:
            raise sampler.error
        if stop is not None and stop.is_set():
            return "step-cancelled"
        if time.monotonic() > deadline:
            return "step-timeout"
    return ""


@dataclass(frozen=True)
class _Report:
    """The supervisor's last words. `exit_code` is None when it had to end the command."""

    exit_code: int | None
    seconds: float
    left: Sequence[int]
    refused: str = ""


class _Child:
    """A supervisor, the socket that keeps it going, and the output of whatever it starts."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.supervisor = subprocess.Popen(
                # UTF-8 mode: a path in the order means the same bytes there as here, whatever the locale.
                [sys.executable, "-I", "-S", "-X", "utf8", child_supervisor.__file__],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # All that an interpreter may need to start. Credentials stay with Enginehouse.
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                start_new_session=True,
            )
        assert self.supervisor.stdout is not None
        self.output = Output(self.supervisor.stdout)

    def send(self, order: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):  # the supervisor is gone, as the missing report will show
            self._socket.sendall(json.dumps(order).encode() + b"\n")

    def pass_on(self, on_line: Callable[[str], None]) -> bool:
        """Wait a little for output. False once there is no more to come."""
        if self.supervisor.poll() is None:
            return self.output.read(_POLL_S, on_line) or not self.output.over
        # What it left lies in the pipe, and then comes the end. Orphans of a killed supervisor may write for ever.
        for _ in range(2):
            self.output.read(0, on_line)
        return False

    def end(self, grace_s: float) -> _Report | None:
        """Have everything ended. Reads on meanwhile, since a full pipe would stop a tool that cleans up."""
        # Unlike close, shutdown is heard although a fork of this process may hold the socket too.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + grace_s + 2 * child_supervisor.KILL_S + 2 * child_supervisor.DOCKER_S
        while self.pass_on(lambda _: None) and time.monotonic() < deadline:
            pass
        try:
            self.supervisor.wait(1.0)
        except subprocess.TimeoutExpired:
            self.supervisor.kill()
            self.supervisor.wait()
        self.output.close()
        with self._socket:
            return self._report()

    def _report(self) -> _Report | None:
        self._socket.setblocking(False)
        text = b""
        with suppress(OSError):
            while data := self._socket.recv(1 << 16):
                text += data
        told: dict[str, Any] = {}
        for line in text.splitlines():
            told |= json.loads(line)
        return _Report(**told) if "left" in told else None


class _Sampler(threading.Thread):
    """Measures all descendants of `supervisor`, and remembers who they were: pid and start."""

    def __init__(self, supervisor: int, sample_gpu: Callable[[frozenset[int]], int] | None) -> None:
        super().__init__(name=f"sample-{supervisor}", daemon=True)
        self.over = threading.Event()
        self.seen: frozenset[tuple[int, int]] = frozenset()
        self.peak_host_bytes = 0
        self.peak_gpu_bytes = 0
        self.error: Exception | None = None
        self._host_due = 0.0
        self._supervisor = supervisor
        self._sample_gpu = sample_gpu

    def run(self) -> None:
        try:
            while not self.over.wait(_SAMPLE_S):
                self._sample()
        except Exception as error:
            self.error = error

    def _sample(self) -> None:
        table = child_supervisor.process_table()
        pids = frozenset(p for p in child_supervisor.descendants([self._supervisor], table) if table[p].alive)
        self.seen |= {(pid, table[pid].started) for pid in pids}
        started = time.monotonic()
        if started >= self._host_due:
            self.peak_host_bytes = max(self.peak_host_bytes, sum(map(_host_bytes, pids)))
            # The system walks all pages for it: 44 ms a GiB, measured. It gets a tenth of one core at most.
            self._host_due = started + 10 * (time.monotonic() - started)
        if self._sample_gpu is not None:
            self.peak_gpu_bytes = max(self.peak_gpu_bytes, self._sample_gpu(pids))


def _host_bytes(pid: int) -> int:
    """The proportional set size of `pid`, or 0 when it has ended or belongs to another user."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _end_orphans(session: int, seen: frozenset[tuple[int, int]]) -> list[int]:
    """SIGKILL for the members of `session`, for those in `seen`, and for all below. The pids that it does not end.

    Without the supervisor, who has left the session and was not sampled yet cannot be told from a stranger.
    """
    deadline = time.monotonic() + child_supervisor.KILL_S
    while True:
        table = child_supervisor.process_table()
        known = {pid for pid, process in table.items() if process.session == session or (pid, process.started) in seen}
        known |= child_supervisor.descendants(known, table)
        left = sorted(pid for pid in known if table[pid].alive)
        if not left or time.monotonic() > deadline:
            return left
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        seen |= {(pid, table[pid].started) for pid in left}
        time.sleep(0.02)
