"""Real children, killed in every way. Whatever a test starts carries its mark in the environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import SettingsError, StepFailed
from infra.processes import child_supervisor
from infra.processes.child import Outcome, run
from tests.processes import processes_that

ROOT = Path(__file__).parents[3]

# Four workers: two plain ones, one in a session of its own, and a daemon that ignores SIGTERM.
WORKERS = """
import os, signal, time
def worker(kind):
    if kind == "session":
        os.setsid()
    if kind == "daemon":
        for step in (os.setsid, lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)):
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.01)
            step()
    os.write(writing, b".")
    time.sleep(60)
reading, writing = os.pipe()
for kind in ("plain", "plain", "session", "daemon"):
    if os.fork() == 0:
        worker(kind)
ready = 0
while ready < 4:
    ready += len(os.read(reading, 4))
print("ready", flush=True)
"""
FAMILY = WORKERS + "time.sleep(60)"
FAMILY_SIZE = 5

# Runs a command, given as JSON, and passes its lines on. On the first line it starts a stranger that inherits
# whatever can be inherited, and prints the pid. The name of a file is how many processes a sample has seen.
PARENT = """
import json, subprocess, sys
from pathlib import Path
from infra.processes.child import run
strangers = []
def on_line(line):
    if not strangers:
        strangers.append(subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL))
        print(strangers[0].pid, flush=True)
    print(line, flush=True)
def sample_gpu(pids):
    (folder / f"sampled-{len(pids)}").touch()
    return 0
arguments = json.loads(sys.argv[1])
folder = Path(arguments.pop("folder"))
run(folder=folder, timeout_s=None, on_line=on_line, sample_gpu=sample_gpu, **arguments)
"""

DOCKER = """#!/bin/sh
echo "$@" >> "$DOCKER_LOG"
case $1 in
run) echo up; exec sleep 60 ;;
*) exit 1 ;;
esac
"""


class Mark:
    """Knows the living processes of one test."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"CHILD_TEST": uuid.uuid4().hex}
        self._folder = folder

    def run_python(
        self,
        program: str,
        on_line: Callable[[str], None] = lambda _: None,
        *,
        timeout_s: float | None = 20,
        grace_s: float = 2,
        stop: threading.Event | None = None,
        sample_gpu: Callable[[frozenset[int]], int] | None = None,
        sample_s: float = 0.5,
    ) -> Outcome:
        return run(
            [sys.executable, "-c", program],
            folder=self._folder,
            environment=self.environment,
            timeout_s=timeout_s,
            on_line=on_line,
            sample_gpu=sample_gpu,
            grace_s=grace_s,
            stop=stop,
            sample_s=sample_s,
        )

    def living(self) -> list[psutil.Process]:
        return processes_that(lambda process: process.environ().get("CHILD_TEST") == self.environment["CHILD_TEST"])

    def is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.living():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Mark]:
    mark = Mark(tmp_path)
    yield mark
    for process in mark.living():
        process.kill()


def test_lines_come_while_the_command_runs(mark: Mark, tmp_path: Path) -> None:
    program = """
import os, sys, time
print("10 %", end="\\r", flush=True)
while not os.path.exists("seen"):
    time.sleep(0.01)
sys.stdout.buffer.write(b"\\n\\r20 %\\rdone\\r\\n\\n")
sys.stdout.flush()
print("and no end", end="", file=sys.stderr)
"""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        (tmp_path / "seen").touch()

    outcome = mark.run_python(program, on_line)
    assert lines == ["10 %", "20 %", "done", "", "and no end"]
    assert outcome.tail == "10 %\r\n\r20 %\rdone\r\n\nand no end"


def test_what_is_no_text_and_what_is_no_line_is_passed_on_too(mark: Mark) -> None:
    program = """
import sys
out = sys.stdout.buffer
out.write(b"\\xff")
out.write("é".encode()[:1]); out.flush()
out.write("é".encode()[1:] + b"\\n" + b"x" * 150_000 + b"\\nend\\n")
"""
    lines: list[str] = []
    outcome = mark.run_python(program, lines.append)
    assert [line if len(line) < 10 else len(line) for line in lines] == [
        "\ufffdé",
        65536,
        65536,
        150_000 - 131_072,
        "end",
    ]
    assert len(outcome.tail) == 65536
    assert outcome.tail.endswith("x\nend\n")


@pytest.mark.parametrize("exit_code", [0, 3, -signal.SIGTERM, -signal.SIGKILL])
def test_the_exit_code_is_the_commands_own(mark: Mark, exit_code: int) -> None:
    end = f"sys.exit({exit_code})" if exit_code >= 0 else f"os.kill(os.getpid(), {-exit_code})"
    outcome = mark.run_python(f"import os, sys, time; time.sleep(0.2); {end}")
    assert outcome.exit_code == exit_code
    assert 0.2 <= outcome.seconds < 5


def test_the_command_gets_what_it_was_given_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    folder = tmp_path / "bücher"
    folder.mkdir()
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    environment = {"PATH": "/usr/bin:/bin", "NAME": "zwei\nZeilen\udcff", "LONG": "x" * 100_000}
    lines: list[str] = []
    program = (
        "pwd -P; cat /proc/$$/environ | tr '\\0\\n' '|/'; echo; ls -m /proc/$$/fd; readlink /proc/$$/fd/0; "
        "cut -d ' ' -f 6 /proc/$$/stat"
    )
    try:
        run(["sh", "-c", program], folder=folder, environment=environment, timeout_s=20, on_line=lines.append)
    finally:
        os.close(reading)
        os.close(writing)
    joined = "".join(lines[1:-3])
    assert lines[0] == str(folder)
    assert joined == f"PATH=/usr/bin:/bin|NAME=zwei/Zeilen\ufffd|LONG={'x' * 100_000}|"
    descriptors, stdin, session = lines[-3:]
    assert descriptors == "0, 1, 2"
    assert stdin == "/dev/null"
    assert int(session) != os.getsid(0)


def test_the_command_heeds_every_signal(tmp_path: Path) -> None:
    command = ["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    lines: list[str] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(command, folder=tmp_path, environment={}, timeout_s=20, on_line=lines.append)
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    # Signals 32 and 33 are glibc's own: no program can set them, and children of make are born ignoring them.
    own = 0b11 << 31
    assert [int(line.split()[1], 16) & ~own for line in lines] == [0, 0]


@pytest.mark.parametrize("way", ["timeout", "stop", "error", "interrupt", "gpu"])
def test_everything_is_ended_before_run_is_left(mark: Mark, way: str) -> None:
    stop = threading.Event()
    sizes: list[int] = []

    def on_line(line: str) -> None:
        assert line == "ready"
        sizes.append(len(mark.living()))
        if way == "stop":
            stop.set()
        if way == "error":
            raise ZeroDivisionError
        if way == "interrupt":
            raise KeyboardInterrupt

    def sample_gpu(pids: frozenset[int]) -> int:
        raise LookupError

    expected = {"error": ZeroDivisionError, "interrupt": KeyboardInterrupt, "gpu": LookupError}.get(way, StepFailed)
    with pytest.raises(expected) as caught:
        mark.run_python(
            FAMILY,
            on_line,
            timeout_s=1 if way == "timeout" else None,
            stop=stop,
            grace_s=0.3,
            sample_gpu=sample_gpu if way == "gpu" else None,
        )
    assert mark.living() == []
    if way != "gpu":
        assert sizes == [FAMILY_SIZE]
    if isinstance(caught.value, StepFailed):
        assert caught.value.code == {"timeout": "step-timeout", "stop": "step-cancelled"}[way]
        assert not caught.value.retryable
        assert "ready" in caught.value.hint


def test_a_tool_may_use_the_grace_to_clean_up(mark: Mark, tmp_path: Path) -> None:
    # It writes more than a pipe holds, so somebody must read it to the end.
    program = """
import os, signal, sys, time
def clean(*_):
    os.write(1, b"x" * 300_000)
    open("clean", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, clean)
print("ready", flush=True)
time.sleep(60)
"""
    stop = threading.Event()

    def on_line(line: str) -> None:
        stop.set()

    with pytest.raises(StepFailed) as caught:
        mark.run_python(program, on_line, stop=stop, grace_s=10)
    assert caught.value.code == "step-cancelled"
    assert (tmp_path / "clean").exists()


def test_what_a_command_leaves_behind_is_ended(mark: Mark) -> None:
    outcome = mark.run_python(WORKERS + "os._exit(7)", grace_s=0.3, timeout_s=None)
    assert outcome.exit_code == 7
    assert mark.living() == []


def test_memory_of_all_processes_is_counted_and_shared_pages_once(mark: Mark, tmp_path: Path) -> None:
    program = """
import os, time
block = bytearray(b"x") * (200 << 20)
for _ in range(3):
    if os.fork() == 0:
        break
else:
    print("ready", flush=True)
while not os.path.exists("sampled"):
    time.sleep(0.01)
"""
    lines: list[str] = []
    seen: list[frozenset[int]] = []

    def sample_gpu(pids: frozenset[int]) -> int:
        if seen and "ready" in lines:  # this sample may have begun before that line
            (tmp_path / "sampled").touch()
        if lines:
            seen.append(pids)
        return 1000 * len(pids)

    outcome = mark.run_python(program, lines.append, sample_gpu=sample_gpu)
    assert outcome.exit_code == 0
    assert 200 << 20 <= outcome.peak_host_bytes < 400 << 20
    assert outcome.peak_gpu_bytes == 4000
    assert os.getpid() not in seen[0]


def _start_parent(
    command: list[str], folder: Path, environment: dict[str, str], container: str = ""
) -> tuple[int, int]:
    """The pids of a program that is in the midst of `run`, and of its other child."""
    arguments = {"command": command, "folder": str(folder), "environment": environment, "container": container}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    with parent.stdout:
        stranger = int(parent.stdout.readline())
        assert parent.stdout.readline() in ("ready\n", "up\n")
    threading.Thread(target=parent.wait).start()
    return parent.pid, stranger


def _ends_within(seconds: float, process: psutil.Process) -> bool:
    """Whether `process` ends in time. When its zombie goes is up to whoever inherits it."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_nothing_outlives_a_killed_enginehouse(tmp_path: Path, mark: Mark) -> None:
    parent, stranger = _start_parent([sys.executable, "-c", FAMILY], tmp_path, mark.environment)
    try:
        assert len(mark.living()) == FAMILY_SIZE
        supervisor = next(p for p in psutil.Process(parent).children() if p.pid != stranger)
        os.kill(parent, signal.SIGKILL)
        assert mark.is_gone_within(5)
        assert _ends_within(2, supervisor)
        # It has inherited whatever it could, and still the end of Enginehouse was seen.
        assert psutil.pid_exists(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)


def test_the_command_dies_with_its_supervisor_and_the_rest_by_enginehouse(tmp_path: Path, mark: Mark) -> None:
    parent, stranger = _start_parent([sys.executable, "-c", FAMILY], tmp_path, mark.environment)
    try:
        supervisor = next(p for p in psutil.Process(parent).children() if p.pid != stranger)
        leader = next(p for p in mark.living() if p.ppid() == supervisor.pid and os.getpgid(p.pid) == supervisor.pid)
        while not (tmp_path / f"sampled-{FAMILY_SIZE}").exists():
            time.sleep(0.02)
        os.kill(parent, signal.SIGSTOP)
        supervisor.kill()
        assert _ends_within(5, leader)
        assert len(mark.living()) == FAMILY_SIZE - 1
        os.kill(parent, signal.SIGCONT)
        assert mark.is_gone_within(5)
    finally:
        os.kill(parent, signal.SIGKILL)
        os.kill(stranger, signal.SIGKILL)


def _docker(folder: Path, mark: Mark) -> dict[str, str]:
    """An environment whose docker notes what it is asked, and fails at all but `run`."""
    program = folder / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    return {**mark.environment, "PATH": f"{folder}:/usr/bin:/bin", "DOCKER_LOG": str(folder / "log")}


def test_the_container_of_a_killed_enginehouse_is_killed(tmp_path: Path, mark: Mark) -> None:
    command = ["docker", "run", "--name", "build-7", "image"]
    parent, stranger = _start_parent(command, tmp_path, _docker(tmp_path, mark), "build-7")
    os.kill(stranger, signal.SIGKILL)
    supervisor = next(p for p in psutil.Process(parent).children() if p.pid != stranger)
    os.kill(parent, signal.SIGKILL)
    assert _ends_within(5, supervisor)
    assert (tmp_path / "log").read_text().splitlines() == [
        "run --name build-7 image",
        "kill build-7",
        "rm --force build-7",
    ]
    assert mark.living() == []


@pytest.mark.parametrize("container", ["", "build-8"])
def test_a_killed_supervisor_takes_everything_along(tmp_path: Path, mark: Mark, container: str) -> None:
    # As sampled: processes that left the session before the first sample cannot be found without the supervisor.
    def sample_gpu(pids: frozenset[int]) -> int:
        if len(pids) >= (1 if container else FAMILY_SIZE):
            leader = min(psutil.Process(pid).create_time() for pid in pids)
            os.kill(next(p.ppid() for p in map(psutil.Process, pids) if p.create_time() == leader), signal.SIGKILL)
        return 0

    command = ["docker", "run", "image"] if container else [sys.executable, "-c", FAMILY]
    with pytest.raises(StepFailed) as caught:
        run(
            command,
            folder=tmp_path,
            environment=_docker(tmp_path, mark),
            timeout_s=20,
            on_line=lambda _: None,
            container=container,
            sample_gpu=sample_gpu,
        )
    assert caught.value.code == "supervisor-lost"
    assert caught.value.retryable
    assert mark.living() == []
    if container:
        assert (tmp_path / "log").read_text().splitlines()[1:] == ["kill build-8", "rm --force build-8"]


def test_a_process_that_was_not_sampled_yet_is_known_by_the_session(mark: Mark) -> None:
    program = """
import os, time
supervisor = os.getppid()
if os.fork() == 0:
    print(supervisor, flush=True)
time.sleep(60)
"""
    with pytest.raises(StepFailed) as caught:
        mark.run_python(program, lambda line: os.kill(int(line), signal.SIGKILL), sample_s=60)
    assert caught.value.code == "supervisor-lost"
    assert mark.living() == []


def test_a_docker_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho $1 >> log\nexec sleep 60\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    child_supervisor.remove_container("docker", "build-9", {"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout_s=0.1)
    assert (tmp_path / "log").read_text().split() == ["kill", "rm"]


@pytest.mark.parametrize("missing", ["no-such-tool", "/no/such/tool", "no-such-folder", "/etc/passwd"])
def test_a_missing_program_or_folder_is_named(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / missing if "folder" in missing else tmp_path
    command = ["true"] if "folder" in missing else [missing]
    with pytest.raises(SettingsError) as caught:
        run(command, folder=folder, environment={}, timeout_s=20, on_line=lambda _: None)
    assert caught.value.code == "tool-missing" and missing in caught.value.message


def test_runs_of_many_threads_do_not_wait_for_each_other(tmp_path: Path, mark: Mark) -> None:
    """Were the socket of one run inherited by the supervisor of another, its end would go unheard."""
    stop, ready = threading.Event(), threading.Semaphore(0)
    codes: list[str] = []

    def run_one() -> None:
        try:
            run(
                ["sh", "-c", "echo ready; exec sleep 60"],
                folder=tmp_path,
                environment={**mark.environment, "PATH": "/usr/bin:/bin"},
                timeout_s=20,
                on_line=lambda _: ready.release(),
                stop=stop,
            )
        except StepFailed as error:
            codes.append(error.code)

    threads = [threading.Thread(target=run_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ready.acquire(timeout=10)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert codes == ["step-cancelled"] * 8
    assert mark.living() == []
