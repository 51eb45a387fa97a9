from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infra.processes import background, sessions

SLEEP = "import time; time.sleep(60)"
# A child in a session of its own, as Triton is to its node.
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True).wait()"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    background.end_members(tmp_path, grace_s=5)


def _launch(home: Path, code: str, environment: Mapping[str, str] | None = None) -> int:
    process = sessions.start_session(
        [sys.executable, "-c", code],
        log=home / "log",
        folder=home,
        environment={background.MARKER: str(home)} if environment is None else environment,
    )
    background.reap(process)
    background.remember(home / "record", process.pid, {})
    return process.pid


def _wait_for_members(home: Path, count: int) -> None:
    until = time.monotonic() + 10
    while len(background.members(home)) != count:
        assert time.monotonic() < until, background.members(home)
        time.sleep(0.02)


def test_a_record_finds_its_process_until_it_ends(home: Path) -> None:
    pid = _launch(home, SLEEP)
    found = background.find(home / "record", home)
    assert found is not None and found.pid == pid
    found.kill()
    _wait_for_members(home, 0)
    assert background.find(home / "record", home) is None
    assert background.find(home / "never-written", home) is None


def test_a_recycled_pid_is_not_taken_for_ours(home: Path) -> None:
    _launch(home, SLEEP)
    record = json.loads((home / "record").read_text())
    background.write_private(home / "record", record | {"created": record["created"] - 60})
    assert background.find(home / "record", home) is None


def test_a_process_of_another_home_is_not_found(home: Path) -> None:
    other = home / "other"
    other.mkdir()
    _launch(home, SLEEP, {background.MARKER: str(other)})
    try:
        assert background.find(home / "record", home) is None
        assert background.members(home) == []
    finally:
        background.end_members(other, grace_s=5)


def test_children_of_a_killed_parent_are_ended(home: Path) -> None:
    pid = _launch(home, PARENT)
    _wait_for_members(home, 2)
    os.kill(pid, signal.SIGKILL)
    _wait_for_members(home, 1)
    background.end_members(home, grace_s=5)
    assert background.members(home) == []


def test_who_ignores_sigterm_is_killed(home: Path) -> None:
    ready = home / "ready"
    ignore = "import signal, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    _launch(home, f"{ignore}; pathlib.Path({str(ready)!r}).touch(); {SLEEP}")
    while not ready.exists():
        time.sleep(0.02)
    background.end_members(home, grace_s=0.2)
    assert background.members(home) == []


def test_a_child_heeds_sigint_although_its_parent_ignores_it(home: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        report = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        _launch(home, f"{report}; import sys; sys.stdout.flush(); {SLEEP}")
    finally:
        signal.signal(signal.SIGINT, before)
    while not (home / "log").read_text():
        time.sleep(0.02)
    assert background.tail(home / "log") == "True"


def test_taken_ports_name_their_owner(home: Path) -> None:
    serve = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    pid = _launch(home, f"{serve}; time.sleep(60)")
    while not (home / "log").read_text().endswith("\n"):
        time.sleep(0.02)
    port = int((home / "log").read_text())
    owner = background.taken([port])[port]
    assert owner is not None and owner.pid == pid
    background.end_members(home, grace_s=5)
    assert background.taken([port]) == {}


def test_private_files_and_large_logs(home: Path) -> None:
    path = home / "private.json"
    path.write_text("old")
    path.chmod(0o644)
    background.write_private(path, {"key": "value"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"key": "value"}

    log = home / "service.log"
    log.write_text("small")
    background.rotate(log)
    assert log.exists()
    with log.open("r+b") as file:
        file.truncate((16 << 20) + 1)
    background.rotate(log)
    assert not log.exists() and (home / "service.log.1").exists()
