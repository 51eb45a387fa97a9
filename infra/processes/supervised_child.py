"""The supervisor of one command, as Enginehouse holds it: its process, its socket and what its command prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra.processes import child_supervisor
from infra.processes.child_output import Output

# Reactions to `stop`, to the time limit and to a killed supervisor come this late at most.
_POLL_S = 0.1


@dataclass(frozen=True)
class Report:
    """The last report of the supervisor. `exit_code` is None if it had to end the command."""

    exit_code: int | None
    seconds: float
    left: Sequence[int]
    refused: str = ""


class SupervisedChild:
    """A supervisor, the socket that keeps it going, and the output of whatever it starts."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.supervisor = subprocess.Popen(
                # UTF-8 mode: a path in the order means the same bytes to both, whatever the locale.
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
        """Wait a little for output. Returns False once no more will come."""
        if self.supervisor.poll() is None:
            return self.output.read(_POLL_S, on_line) or not self.output.over
        # What it left lies in the pipe, and then comes the end. Orphans of a killed supervisor may write for ever.
        for _ in range(2):
            self.output.read(0, on_line)
        return False

    def end(self, grace_s: float) -> Report | None:
        """End everything. Returns None if the supervisor was killed and so reports nothing.

        It reads on meanwhile, since a full pipe would stop a tool that cleans up.
        """
        # Unlike close, shutdown reaches the supervisor although a fork of this process may hold the socket too.
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
            return self._read_report()

    def _read_report(self) -> Report | None:
        self._socket.setblocking(False)
        text = b""
        with suppress(OSError):
            while data := self._socket.recv(1 << 16):
                text += data
        fields: dict[str, Any] = {}
        for line in text.splitlines():
            fields |= json.loads(line)
        return Report(**fields) if "left" in fields else None


def end_orphans(session: int, seen: frozenset[tuple[int, int]]) -> list[int]:
    """Kill the members of `session`, those in `seen`, and all below them. Returns the pids that SIGKILL does not end.

    Without the supervisor, a process that has left the session and was not sampled yet looks like a stranger's.
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
