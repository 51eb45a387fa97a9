"""External tools as children that never outlive Enginehouse: long builds that fork workers, use MPI and CUDA.

    Enginehouse ── socket ── supervisor (leads a session, inherits orphans) ── the tool ── its workers

The supervisor, `child_supervisor.py` beside this, ends everything when its socket closes. The system closes it even
when Enginehouse is killed, and no other child inherits it.
"""

from __future__ import annotations

import math
import shlex
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import EnginehouseError, SettingsError, StepFailed
from infra.processes import child_supervisor
from infra.processes.child_sampler import Sampler
from infra.processes.supervised_child import Report, SupervisedChild, end_orphans

_SAMPLE_S = 0.5
_HINT_CHARACTERS = 2000


@dataclass(frozen=True)
class Outcome:
    """How a command ended, whatever its exit code.

    `exit_code` is negative when a signal ended the command, as in subprocess. `seconds` is the command's own time,
    without that of ending what it left behind. `tail` is the last 64 KiB of its output.

    `peak_host_bytes` is the largest sum, over all descendants, of PSS: the workers of a build are forks and map the
    same weights, and RSS would count each shared page once for each worker. Pages of mapped files that are in memory
    count. The sum is sampled twice a second, and less often if counting takes long, so a command that ends before may
    show 0. Processes of other users and in containers do not count. `peak_gpu_bytes` is the largest value of
    `sample_gpu`, or 0.
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
    sample_s: float = _SAMPLE_S,
) -> Outcome:
    """Run `command` in `folder` with exactly `environment` and nothing on stdin, and wait for its end.

    `on_line` gets each line of stdout and stderr at once, in this thread; '\\r' ends a line too, as progress bars
    write it. `sample_gpu` gets the pids of all descendants every `sample_s`, in another thread, and returns the
    bytes of GPU memory that these hold. `container` is the name with which `command`, a foreground `docker run`
    whose first word is an absolute path or found in the PATH of `environment`, starts one: it is killed and removed
    at the end. The name must be fresh, since any container of that name is removed.

    However this function ends, and when Enginehouse is killed, every descendant is ended first: SIGTERM, and SIGKILL
    for those left after `grace_s` seconds, also in sessions and groups of their own.

    Raises SettingsError `tool-missing` when there is no such folder or program; StepFailed with `step-timeout` after
    `timeout_s` seconds (None: no limit), `step-cancelled` once `stop` is set, `supervisor-lost` if another process
    ended the supervisor, `processes-left` if not even SIGKILL ended all; and what `on_line` or `sample_gpu` raise. The
    messages show the command, and the hints its last output.
    """
    order = {
        "command": list(command),
        "folder": str(folder.absolute()),
        "environment": dict(environment),
        "container": container,
        "grace_s": grace_s,
    }
    child = SupervisedChild()
    sampler = Sampler(child.supervisor.pid, sample_gpu, sample_s)
    try:
        sampler.start()
        child.send(order)
        interruption = _follow(child, sampler, on_line, timeout_s, stop)
    finally:
        sampler.over.set()
        report = child.end(grace_s)
        if report is None:  # the supervisor was killed
            left = end_orphans(child.supervisor.pid, sampler.seen)
            if container:
                child_supervisor.remove_container(command[0], container, environment)
            report = Report(exit_code=None, seconds=0.0, left=left)
        sampler.join(1.0)  # not longer: `sample_gpu` may hang

    tail = child.output.tail()
    name = textwrap.shorten(shlex.join(command), 120, placeholder=" ...")
    failure = _failure(name, report, interruption, timeout_s, tail)
    if failure is not None:
        raise failure
    assert report.exit_code is not None
    return Outcome(report.exit_code, report.seconds, sampler.peak_host_bytes, sampler.peak_gpu_bytes, tail)


def _failure(
    name: str, report: Report, interruption: str, timeout_s: float | None, tail: str
) -> EnginehouseError | None:
    """Why the command `name` has no outcome; None if it has one."""
    last_lines = f"its output ends with:\n{tail[-_HINT_CHARACTERS:]}"
    if report.refused:
        return SettingsError(report.refused, hint="install it, or correct its path or PATH", code="tool-missing")
    if interruption == "step-cancelled":
        return StepFailed(f"{name} was cancelled", code=interruption, hint=last_lines)
    if interruption == "step-timeout" and report.exit_code is None:
        return StepFailed(
            f"{name} took longer than {timeout_s:g} s",
            code=interruption,
            hint=f"allow it more time, or see what it waited for; {last_lines}",
        )
    if report.exit_code is None:
        return StepFailed(
            f"the supervisor of {name} was ended by another process",
            code="supervisor-lost",
            hint=f"dmesg shows whether the system ran out of memory; {last_lines}",
            retryable=True,
        )
    if report.left:
        return StepFailed(
            f"SIGKILL does not end these processes of {name}: {', '.join(map(str, report.left))}",
            code="processes-left",
            hint="they hang in the kernel: dmesg may show a GPU or a disk that failed",
        )
    return None


def _follow(
    child: SupervisedChild,
    sampler: Sampler,
    on_line: Callable[[str], None],
    timeout_s: float | None,
    stop: threading.Event | None,
) -> str:
    """Pass the output on until its end. Returns the error code of what interrupts that, or an empty text."""
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while child.pass_on(on_line):
        if sampler.error is not None:
            raise sampler.error
        if stop is not None and stop.is_set():
            return "step-cancelled"
        if time.monotonic() > deadline:
            return "step-timeout"
    return ""
