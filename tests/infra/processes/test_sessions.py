from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.processes.sessions import free_ports, terminate

# A leader, which ignores SIGTERM if it is `stubborn`, and one child; both write their pid and sleep.
FAMILY = """
import os, signal, subprocess, sys, time
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(child.pid))
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(60)
"""


def _family(folder: Path, temper: str) -> tuple[subprocess.Popen[bytes], int]:
    note = folder / "child"
    leader = subprocess.Popen([sys.executable, "-c", FAMILY, str(note), temper], start_new_session=True)
    while not note.exists():
        assert leader.poll() is None
        time.sleep(0.01)
    return leader, int(note.read_text())


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_free_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))


def test_free_ports_passes_over_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_ports(1)[0]))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError):
            free_ports(1, port, port)


@pytest.mark.parametrize("by", ["process", "pid"])
def test_terminate_ends_the_leader_and_its_child(tmp_path: Path, by: str) -> None:
    leader, child = _family(tmp_path, "mild")
    terminate(leader if by == "process" else leader.pid, 5)
    assert not _running(child)
    assert leader.wait(5) == -15


def test_terminate_kills_who_ignores_it_after_the_grace(tmp_path: Path) -> None:
    leader, child = _family(tmp_path, "stubborn")
    started = time.monotonic()
    terminate(leader, 0.3)
    assert time.monotonic() - started >= 0.3
    assert leader.returncode == -9
    assert not _running(child)


def test_terminate_ends_the_children_of_a_leader_that_is_gone(tmp_path: Path) -> None:
    leader, child = _family(tmp_path, "mild")
    os.kill(leader.pid, 9)
    leader.wait(5)
    terminate(leader.pid, 5)
    assert not _running(child)


def test_terminate_leaves_a_process_alone_that_leads_no_group() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        terminate(bystander.pid, 0.1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
